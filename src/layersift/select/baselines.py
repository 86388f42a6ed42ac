"""Choices of layers to hold a selection against: plain ones, shorter and longer rankings, masks, and random draws."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from layersift.config.variants import parse_arm
from layersift.records.scores import mask_of


def arm_mask(arm: str, num_layers: int, count: int, ranking: Sequence[int] = ()) -> str:
    """The mask (num_layers digits) of ``all``, ``first``, ``last``, ``top-N`` or ``NAME=MASK``.

    ``top-N`` are the first N of the ranking, filled up with the lowest layers where the ranking is shorter.

    Args:
        count: how many layers ``first`` and ``last`` have.

    Raises:
        SelectionError: a mask of another length, or an N beyond the number of layers.
    """
    parsed = parse_arm(arm, num_layers)
    if parsed.mask is not None:
        return parsed.mask
    if parsed.top is not None:
        rest = [i for i in range(num_layers) if i not in ranking]
        return mask_of([*ranking, *rest][: parsed.top], num_layers)
    layers = {"all": range(num_layers), "first": range(count), "last": range(num_layers - count, num_layers)}
    return mask_of(layers[arm], num_layers)


def draw_masks(num_layers: int, size: int, draws: int, seed: int, excluded: Collection[str] = ()) -> tuple[str, ...]:
    """Different masks of ``size`` layers, drawn by the seed: ``draws`` of them, or as many as there are.

    Args:
        excluded: masks of other rows. They are drawn only where no others of this size remain.
    """
    barred = {mask for mask in excluded if len(mask) == num_layers and mask.count("1") == size}
    total = math.comb(num_layers, size)
    if len(barred) == total:
        barred = set()
    generator = np.random.default_rng(seed)
    drawn: dict[str, None] = {}
    while len(drawn) < min(draws, total - len(barred)):
        mask = mask_of(sorted(generator.choice(num_layers, size, replace=False).tolist()), num_layers)
        if mask not in barred:
            drawn[mask] = None
    return tuple(drawn)
