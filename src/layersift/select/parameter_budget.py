"""As many layers as a number of trained parameters allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layersift.errors import SelectionError


def within_budget(choose: Callable[[int], tuple[int, ...]], costs: Sequence[int], budget: int) -> int:
    """The largest N for which N layers, and every smaller number of them, cost no more than the budget.

    The ranking is followed without gaps: a layer that no longer fits is not replaced by a cheaper, less important one.

    Args:
        choose: the layers for a given N.
        costs: trained parameters of each layer.

    Raises:
        SelectionError: not even one layer fits.
    """
    fitting = 0
    while fitting < len(costs) and sum(costs[i] for i in choose(fitting + 1)) <= budget:
        fitting += 1
    if not fitting:
        layer = choose(1)[0]
        raise SelectionError(
            f"budget-params {budget:,} is less than one layer costs: layer {layer}, the first choice, would train "
            f"{costs[layer]:,} parameters"
        )
    return fitting
