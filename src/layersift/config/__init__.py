"""Config: every setting once, with its type, range, default and help; recipes that hold them; the YAML they come in."""
