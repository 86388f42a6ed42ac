"""Load: find the blocks of a model, read the rows of a data source, turn them into token sequences."""
