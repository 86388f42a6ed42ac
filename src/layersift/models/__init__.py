"""Models: find the stacks of blocks in one, load it, say which revision it is."""
