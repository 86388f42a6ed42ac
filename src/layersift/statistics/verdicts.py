"""How a metric is read, and what an interval allows to be said of it in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .intervals import Interval


@dataclass(frozen=True)
class Unit:
    """How a metric is read."""

    higher_is_better: bool
    factor: float  # what a figure is multiplied by to be told
    name: str
    digits: int
    near: float  # a difference that hardly anybody minds

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.higher_is_better else -1

    def tell(self, value: float, sign: bool = False) -> str:
        """A figure in this unit."""
        return f"{value * self.factor:{'+' if sign else ''}.{self.digits}f}"


POINTS, LOSS, PERPLEXITY = (
    Unit(True, 100, "points", 1, 0.005),
    Unit(False, 1, "nats a token", 4, 0.01),
    Unit(False, 1, "perplexity", 3, 0.05),
)


def unit_of(metric: str) -> Unit:
    """Points for shares and correlations, nats for losses."""
    return {"loss": LOSS, "perplexity": PERPLEXITY}.get(metric.split()[0], POINTS)


def limits_of(metric: str) -> tuple[float, float]:
    """Between which values a metric can lie."""
    name = metric.split()[0]
    if name in ("matthews", "pearson", "spearman"):
        return -1.0, 1.0
    return {"loss": (0.0, math.inf), "perplexity": (1.0, math.inf)}.get(name, (0.0, 1.0))


def verdict(difference: Interval | None, than: str, unit: Unit) -> str:
    """What the interval of a difference allows to be said, and no more."""
    if difference is None:
        return f"not compared with {than}, which failed"
    if difference.low is None or difference.high is None or difference.half_width is None:
        return f"one seed says nothing of a difference from {than}"
    if difference.holds_zero:
        width = unit.tell(difference.half_width)
        return f"no difference from {than} seen (±{width} {unit.name}, {difference.over})"
    better = (difference.value > 0) == unit.higher_is_better
    edges = sorted(abs(edge) for edge in (difference.low, difference.high))
    between = " to ".join(unit.tell(edge) for edge in edges)
    word, by = "better" if better else "worse", unit.tell(abs(difference.value))
    return f"{word} than {than} by {by} {unit.name} ({between}, {difference.over})"


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of (cost, score) no other beats: one that costs no more and scores more, or costs less and scores alike."""
    return [
        not any((c <= cost and s > score) or (c < cost and s >= score) for c, s in points) for cost, score in points
    ]
