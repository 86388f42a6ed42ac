"""The criteria, one file each; `layersift.score.table` has them by name."""
