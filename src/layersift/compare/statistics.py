"""Intervals of scores over seeds, of paired differences, and what may be said of them in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from layersift.evaluate.metrics import error_of_mean

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
        """How far the interval reaches from the value, on its longer side."""
        return None if self.low is None or self.high is None else max(self.high - self.value, self.value - self.low)

    @property
    def holds_zero(self) -> bool:
        """Whether zero cannot be ruled out."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


@dataclass(frozen=True)
class Runs:
    """One choice of layers over the seeds: the score of each, and its outcomes on the test samples.

    A row of several random draws has the means over its draws, and the score of each draw over the seeds.
    """

    scores: Mapping[int, float]
    outcomes: Mapping[int, np.ndarray]
    averages: bool  # whether the score is the mean of the outcomes, as accuracy is and a correlation is not
    weights: Sequence[float] = ()  # of the outcomes in that mean; none: all alike
    draws: tuple[float, ...] = ()
    asked: int = 1  # seeds there should have been

    @property
    def by_samples(self) -> bool:
        """Whether the spread over the test samples is all there is to judge by."""
        return self.averages and self.asked == 1 and len(self.scores) == 1

    @property
    def counts(self) -> bool:
        """Whether a score counts right answers among the test samples."""
        return self.averages and all(np.isin(o, (0, 1)).all() for o in self.outcomes.values())

    @property
    def grain(self) -> float:
        """The variance that a score has for being a whole number of right answers (Sheppard)."""
        return 1 / (12 * len(next(iter(self.outcomes.values()))) ** 2) if self.counts else 0.0

    def _spread_of_draws(self) -> list[tuple[float, int]]:
        if len(self.draws) < 2:
            return []
        return [(float(np.var(self.draws, ddof=1)) / len(self.draws), len(self.draws) - 1)]


def mean_score(runs: Runs) -> Interval:
    """The score over the seeds, with Student's interval; of one seed alone over the test samples, with Wilson's where
    they are right or wrong. Random draws widen it by the spread between them."""
    seeds, draws = list(runs.scores), runs._spread_of_draws()
    if runs.by_samples:
        (outcomes,) = runs.outcomes.values()
        value, over = runs.scores[seeds[0]], f"{len(outcomes)} test samples"
        if runs.counts and not draws:
            found = stats.binomtest(round(outcomes.sum()), len(outcomes)).proportion_ci(CONFIDENCE, "wilson")
            return Interval(value, float(found.low), float(found.high), over)
        return _over_samples(value, outcomes, runs, draws, over)
    return _over_seeds(list(runs.scores.values()), runs.grain, draws)


def difference(runs: Runs, reference: Runs) -> Interval | None:
    """``runs`` minus ``reference``, seed by seed, with Student's interval. None without a seed that both have.

    Of one seed alone test sample by test sample, with the interval of Agresti and Min (2005) where those are right or
    wrong. Random draws on either side widen it by the spread between them, by Welch's and Satterthwaite's rule.
    """
    seeds = [seed for seed in runs.scores if seed in reference.scores]
    if not seeds:
        return None
    draws = [*runs._spread_of_draws(), *reference._spread_of_draws()]
    apart = [runs.scores[s] - reference.scores[s] for s in seeds]
    if runs.by_samples and reference.by_samples:
        ours, theirs = runs.outcomes[seeds[0]], reference.outcomes[seeds[0]]
        over = f"{len(ours)} test samples"
        if runs.counts and reference.counts and not draws:
            return _paired_counts(apart[0], ours - theirs, over)
        return _over_samples(apart[0], ours - theirs, runs, draws, over)
    return _over_seeds(apart, runs.grain + reference.grain, draws)


def _over_seeds(values: Sequence[float], grain: float, draws: list[tuple[float, int]]) -> Interval:
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, None, None, "1 seed")
    # Seeds that happen to get as many right answers do not show that all seeds would.
    own = (float(np.var(values, ddof=1)) + grain) / n
    return _around(mean, [(own, n - 1), *draws], f"{n} seeds")


def _over_samples(
    value: float, outcomes: np.ndarray, runs: Runs, draws: list[tuple[float, int]], over: str
) -> Interval:
    if len(outcomes) < 2:
        return Interval(value, None, None, "1 test sample")
    own = error_of_mean(outcomes.tolist(), runs.weights) ** 2
    return _around(value, [(own, len(outcomes) - 1), *draws], over)


def _around(value: float, parts: Sequence[tuple[float, int]], over: str) -> Interval:
    """The interval by variances of the mean and their degrees of freedom."""
    variance = sum(v for v, _ in parts)
    if len(parts) > 1:
        over = f"{over} and {parts[1][1] + 1} draws"
    if variance == 0:
        return Interval(value, value, value, over)
    freedom = variance**2 / sum(v**2 / df for v, df in parts)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return Interval(value, value - half, value + half, over)


def _paired_counts(value: float, apart: np.ndarray, over: str) -> Interval:
    """Wald's interval after half an answer is added to each cell of the 2 x 2 table, so that few answers that differ,
    or none, do not pass for certainty."""
    n = len(apart) + 2
    better, worse = float((apart > 0).sum()) + 0.5, float((apart < 0).sum()) + 0.5
    centre = (better - worse) / n
    variance = ((better + worse) / n - centre**2) / n
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Interval(value, centre - half, centre + half, over)


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


POINTS, LOSS, PERPLEXITY = (
    Unit(True, 100, "points", 1),
    Unit(False, 1, "nats a token", 4),
    Unit(False, 1, "perplexity", 3),
)


def unit_of(metric: str) -> Unit:
    """Points for shares and correlations, nats for losses."""
    return {"loss": LOSS, "perplexity": PERPLEXITY}.get(metric.split()[0], POINTS)


def verdict(found: Interval | None, than: str, unit: Unit) -> str:
    """What the interval of a difference allows to be said, and no more."""
    if found is None:
        return f"not compared with {than}, which failed"
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
