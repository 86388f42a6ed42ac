"""The criteria, one file each; `layersift.score.registry` has them by name."""
