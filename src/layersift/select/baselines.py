"""Choices of layers to hold a selection against: plain ones, shorter and longer rankings, and masks given by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from layersift.config.arms import parse_arm
from layersift.records.scores import layers_of
from layersift.records.selection import Selection


def _random(selection: Selection, seed: int) -> list[int]:
    """As many layers as were selected, drawn by the seed, other than the selected ones where that is possible."""
    generator = np.random.default_rng(seed)
    count, layers = len(selection.selected_layers), selection.num_layers
    while True:
        drawn = sorted(int(i) for i in generator.choice(layers, count, replace=False))
        if count == layers or tuple(drawn) != selection.selected_layers:
            return drawn


_PLAIN: dict[str, Callable[[Selection, int], list[int]]] = {
    "all": lambda selection, seed: list(range(selection.num_layers)),
    "random": _random,
    "first": lambda selection, seed: list(range(len(selection.selected_layers))),
    "last": lambda s, seed: list(range(s.num_layers - len(s.selected_layers), s.num_layers)),
}


def baseline(arm: str, selection: Selection, seed: int) -> Selection:
    """The selection with its layers replaced by those of the arm.

    ``top-N`` are the first N of the ranking as it stands, filled up with the lowest layers where the ranking is
    shorter; ``NAME=MASK`` are the layers marked 1.

    Raises:
        SelectionError: a mask of another length, or an N beyond the number of layers.
    """
    parsed = parse_arm(arm, selection.num_layers)
    layers: list[int]
    if parsed.top is not None:
        rest = [i for i in range(selection.num_layers) if i not in selection.ranking]
        layers = sorted([*selection.ranking, *rest][: parsed.top])
    elif parsed.mask is not None:
        layers = list(layers_of(parsed.mask))
    else:
        layers = _PLAIN[arm](selection, seed)
    return replace(selection, selected_layers=tuple(layers), rule=f"arm: {parsed.name}", compat=None, modules=None)
