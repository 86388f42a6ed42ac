"""Intervals of scores over seeds, of paired differences, and what may be said of them in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, and what that is taken over."""

    value: float
    low: float | None  # None where one figure alone says nothing of its spread
    high: float | None
    over: str  # "3 seeds", "500 test samples"

    @property
    def half_width(self) -> float | None:
        """Half of the interval's length."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def holds_zero(self) -> bool:
        """Whether zero cannot be ruled out."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean of one figure a seed, with Student's interval."""
    n, mean = len(values), float(np.mean(values))
    half = None
    if n > 1:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return _around(mean, half, f"{n} seeds" if n > 1 else "1 seed")


def over_samples(value: float, outcomes: Sequence[float]) -> Interval:
    """``value``, a mean of one outcome a test sample, with the normal interval over the samples."""
    n = len(outcomes)
    half = None
    if n > 1:
        half = float(stats.norm.ppf((1 + CONFIDENCE) / 2) * np.std(outcomes, ddof=1) / math.sqrt(n))
    return _around(value, half, f"{n} test samples")


def _around(value: float, half: float | None, over: str) -> Interval:
    return Interval(value, None, None, over) if half is None else Interval(value, value - half, value + half, over)


@dataclass(frozen=True)
class Runs:
    """One choice of layers over the seeds: the score of each, and its outcomes on the test samples."""

    scores: Mapping[int, float]
    outcomes: Mapping[int, np.ndarray]  # by seed; the mean where a row stands for several trainings
    averages: bool  # whether the score is the mean of the outcomes, as accuracy is and a correlation is not


def mean_score(runs: Runs) -> Interval:
    """The score over the seeds; of one seed alone over the test samples."""
    (first, *others) = runs.scores
    if others or not runs.averages:
        return over_seeds(list(runs.scores.values()))
    return over_samples(runs.scores[first], runs.outcomes[first].tolist())


def difference(runs: Runs, reference: Runs) -> Interval | None:
    """``runs`` minus ``reference``, seed by seed; of one seed alone test sample by test sample. None without a seed
    that both have."""
    seeds = [seed for seed in runs.scores if seed in reference.scores]
    if not seeds:
        return None
    differences = [runs.scores[s] - reference.scores[s] for s in seeds]
    if len(seeds) > 1 or not runs.averages:
        return over_seeds(differences)
    paired = runs.outcomes[seeds[0]] - reference.outcomes[seeds[0]]
    return over_samples(differences[0], paired.tolist())


@dataclass(frozen=True)
class Unit:
    """How a metric is read."""

    higher_is_better: bool
    factor: float  # what a figure is multiplied by to be told
    name: str
    digits: int

    def tell(self, value: float, sign: bool = False) -> str:
        """A figure in this unit."""
        return f"{value * self.factor:{'+' if sign else ''}.{self.digits}f}"


POINTS, LOSS = Unit(True, 100, "points", 1), Unit(False, 1, "nats a token", 4)


def unit_of(metric: str) -> Unit:
    """Points for shares and correlations, nats for losses."""
    return LOSS if metric.split()[0] in ("loss", "perplexity") else POINTS


def verdict(found: Interval | None, than: str, unit: Unit) -> str:
    """What the interval of a difference allows to be said, and no more."""
    if found is None:
        return f"not compared with {than}"
    if found.low is None or found.high is None or found.half_width is None:
        return f"one seed says nothing of a difference from {than}"
    if found.holds_zero:
        width = unit.tell(found.half_width)
        return f"no difference from {than} seen (±{width} {unit.name}, {found.over})"
    better = (found.value > 0) == unit.higher_is_better
    edges = sorted(abs(edge) for edge in (found.low, found.high))
    between = " to ".join(unit.tell(edge) for edge in edges)
    word, by = "better" if better else "worse", unit.tell(abs(found.value))
    return f"{word} than {than} by {by} {unit.name} ({between}, {found.over})"
