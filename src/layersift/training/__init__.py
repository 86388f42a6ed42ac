"""Train: fit the adapters, and write a run directory."""
