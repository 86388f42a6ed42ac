"""Plain choices of layers to hold a selection against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from layersift.select.selection import Selection


def _random(selection: Selection, seed: int) -> list[int]:
    """As many layers as were selected, drawn by the seed, other than the selected ones where that is possible."""
    generator = np.random.default_rng(seed)
    count, layers = len(selection.selected_layers), selection.num_layers
    while True:
        drawn = sorted(int(i) for i in generator.choice(layers, count, replace=False))
        if count == layers or tuple(drawn) != selection.selected_layers:
            return drawn


BASELINES: dict[str, Callable[[Selection, int], list[int]]] = {
    "all": lambda selection, seed: list(range(selection.num_layers)),
    "random": _random,
    "first": lambda selection, seed: list(range(len(selection.selected_layers))),
    "last": lambda s, seed: list(range(s.num_layers - len(s.selected_layers), s.num_layers)),
}


def baseline(name: str, selection: Selection, seed: int) -> Selection:
    """The selection with its layers replaced by those of the named baseline."""
    layers = tuple(BASELINES[name](selection, seed))
    return replace(selection, selected_layers=layers, rule=f"baseline: {name}", compat=None)
