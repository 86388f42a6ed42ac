"""Evaluate: load a run and judge it on held-back data."""
