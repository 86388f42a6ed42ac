"""Data: read the rows of a source, settle its columns, turn rows into the token sequences that a model reads."""
