"""Bad inputs: a place full of damaged files, and tables of what is asked of it."""
