"""Compare: carry out a recipe over several choices of layers, and report it in a table and a picture."""
