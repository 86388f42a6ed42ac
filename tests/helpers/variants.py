"""Rows and cells of a grid, of a few settings."""

from layersift.config.train import TrainSettings
from layersift.experiment.choices import Choice
from layersift.records.runs import Cell

TRAIN = TrainSettings(epochs=1)


def choice_of(name, size, masks, learning_rate=1e-3, *, seconds=None, budget=None, train=TRAIN, **settings):
    """A row of some masks."""
    row = Choice.of(name, size, masks, train, scoring_seconds=seconds, budget=budget)
    return row.with_settings(learning_rate=learning_rate, **settings)


def cell_of(mask, seed=0, judged="test", train=TRAIN, **settings):
    """A cell of some layers."""
    return Cell(mask, seed, train, judged).with_settings(**settings)
