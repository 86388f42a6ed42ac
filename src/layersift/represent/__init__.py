"""Represent: the hidden states that enter and leave each block, one vector a sample."""
