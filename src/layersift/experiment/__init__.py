"""Experiment: a recipe's rows, the trainings of a grid, and how `run`, `sweep`, `compare` and `oracle` fill it."""
