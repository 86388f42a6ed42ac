"""The most important layers within a share of what training all layers costs.

Importance says what a layer gives; what it costs depends on the lowest one chosen, since backpropagation has to reach
it. So for every lowest layer the most important ones above it are taken, as many as the share allows, and of these
choices the one whose layers are together the most important.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from layersift.errors import SelectionError
from layersift.records.scores import LayerScores

ROUNDING = 1e-9  # of a number of layers


def affordable(scores: LayerScores, cost: Callable[[tuple[int, ...]], float], share: float) -> tuple[int, ...]:
    """The affordable layers that are together the most important, ascending.

    Args:
        cost: of training some layers, in any unit.
        share: of the cost of all layers.

    Raises:
        SelectionError: no layer has a score, or not even the cheapest one is affordable.
    """
    layers = len(scores.importance)
    if not scores.ranking:
        raise SelectionError(f"no layer has an importance ({next(iter(scores.undefined.values()))})")
    whole = cost(tuple(range(layers)))
    alone = [cost((layer,)) for layer in range(layers)]
    another = (whole - alone[0]) / max(1, layers - 1)  # what one more layer above the lowest costs
    value = _values(scores)
    choices = []
    for lowest in range(layers):
        # What fits to rounding fits: whether it does is counted exactly in the end.
        extra = math.floor((share * whole - alone[lowest]) / another + ROUNDING) if another > 0 else layers
        if alone[lowest] > share * whole or lowest not in value:
            continue
        above = [i for i in scores.ranking if i > lowest][: max(0, extra)]
        chosen = tuple(sorted([lowest, *above]))
        # The least important layer of all counts nothing: it is taken where it can be had.
        choices.append((sum(value[i] for i in chosen), len(chosen), chosen))
    for _, _, chosen in sorted(choices, reverse=True):
        fitting = _exactly(chosen, cost, share * whole, value)
        if fitting:
            return fitting
    raise SelectionError(
        f"not one layer can be trained within {share:g} of the cost of all; the last takes {alone[-1] / whole:.2f}"
    )


def _values(scores: LayerScores) -> dict[int, float]:
    """Importance above that of the least important layer, so that a further layer never takes away."""
    oriented = {i: scores.sign * v for i, v in enumerate(scores.importance) if v is not None}
    least = min(oriented.values())
    return {i: v - least for i, v in oriented.items()}


def _exactly(
    chosen: tuple[int, ...], cost: Callable[[tuple[int, ...]], float], budget: float, value: dict[int, float]
) -> tuple[int, ...]:
    """``chosen`` without its least important layers, as far as the estimate was too low."""
    kept: Sequence[int] = chosen
    while kept and cost(tuple(kept)) > budget * (1 + 1e-9):
        kept = [i for i in kept if i != min(kept, key=value.__getitem__)]
    return tuple(kept)
