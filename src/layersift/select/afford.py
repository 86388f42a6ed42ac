"""The most important layers within a share of what training all layers costs.

Importance says what a layer gives; what it costs depends on the lowest one chosen, since backpropagation has to reach
it. So for every lowest layer the most important ones above it are taken that the share allows, and of these choices the
one whose layers are together the most important.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from layersift.errors import SelectionError
from layersift.records.selection import LayerScores

ROUNDING = 1e-9  # of a cost: what fits to rounding fits
ATTEMPTS = 8  # at a choice whose cost was estimated too low
Cost = Callable[[tuple[int, ...]], float]


def choose_affordable(scores: LayerScores, cost: Cost, share: float) -> tuple[int, ...]:
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
    prices = _prices(layers, cost)
    budget = share * prices.whole * (1 + ROUNDING)
    value = _values(scores)
    # The most that each lowest layer can come to, by the estimates; what it does come to is counted exactly.
    open_choices = {low: _most_valuable(low, prices, budget, value) for low in value if prices.alone[low] <= budget}
    best: tuple[float, int, tuple[int, ...]] | None = None
    for low in sorted(open_choices, key=lambda low: _worth(open_choices[low], value), reverse=True):
        if best is not None and _worth(open_choices[low], value) <= best[:2]:
            break
        fitting = _exactly(open_choices[low], cost, prices, budget, value)
        if fitting and (best is None or _worth(fitting, value) > best[:2]):
            best = (*_worth(fitting, value), fitting)
    if best is None:
        last = prices.alone[-1] / prices.whole
        raise SelectionError(
            f"not one layer can be trained within {share:g} of the cost of all; the last takes {last:.2f}"
        )
    return best[2]


@dataclass(frozen=True)
class _Prices:
    """What layers cost: each alone, and what it adds above a lower one."""

    whole: float
    alone: tuple[float, ...]
    above: tuple[float, ...]


def _prices(layers: int, cost: Cost) -> _Prices:
    alone = tuple(cost((i,)) for i in range(layers))
    return _Prices(cost(tuple(range(layers))), alone, (0.0, *(cost((0, i)) - alone[0] for i in range(1, layers))))


def _values(scores: LayerScores) -> dict[int, float]:
    """Importance above that of the least important layer, so that a further layer never takes away."""
    oriented = {i: scores.sign * v for i, v in enumerate(scores.importance) if v is not None}
    least = min(oriented.values())
    return {i: v - least for i, v in oriented.items()}


def _worth(chosen: tuple[int, ...], value: Mapping[int, float]) -> tuple[float, int]:
    """What layers come to; the least important layer of all counts nothing, and is taken where it can be had."""
    return math.fsum(value[i] for i in chosen), len(chosen)


def _most_valuable(low: int, prices: _Prices, budget: float, value: Mapping[int, float]) -> tuple[int, ...]:
    """``low`` and the layers above it that are together the most important within a budget, by the estimated prices.

    Exact, by the states that no other beats on both price and worth (Nemhauser and Ullmann 1969).
    """
    states: list[tuple[float, tuple[float, int], tuple[int, ...]]] = [(prices.alone[low], (0.0, 1), (low,))]
    for layer in (i for i in sorted(value) if i > low):
        with_it = [
            (price + prices.above[layer], (worth + value[layer], count + 1), (*of, layer))
            for price, (worth, count), of in states
        ]
        offered = [state for state in with_it if state[0] <= budget] + states
        states = []
        for state in sorted(offered, key=lambda s: (s[0], -s[1][0], -s[1][1])):
            if not states or state[1] > states[-1][1]:
                states.append(state)
    return states[-1][2]


def _exactly(
    chosen: tuple[int, ...], cost: Cost, prices: _Prices, budget: float, value: Mapping[int, float]
) -> tuple[int, ...]:
    """``chosen``, or where it costs more than estimated, what is affordable from its lowest layer on, or nothing."""
    low, within = chosen[0], budget
    for _ in range(ATTEMPTS):
        over = cost(chosen) - budget
        if over <= 0:
            return chosen
        within = min(within, _price(chosen, prices)) - over
        if prices.alone[low] > within:
            break
        chosen = _most_valuable(low, prices, within, value)
    while chosen and cost(chosen) > budget:
        least = min(chosen, key=value.__getitem__)
        chosen = tuple(i for i in chosen if i != least)
    return chosen


def _price(chosen: tuple[int, ...], prices: _Prices) -> float:
    return prices.alone[chosen[0]] + sum(prices.above[i] for i in chosen[1:])


def count_within_budget(choose: Callable[[int], tuple[int, ...]], costs: Sequence[int], budget: int) -> int:
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
