"""Intervals of scores over seeds, and of paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from .samples import error_of_mean

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
    limits: tuple[float, float] = (-math.inf, math.inf)  # between which the score can lie

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
    they are right or wrong. Random draws widen it by the spread between them; it ends where the score does."""
    return _within(_mean_score(runs), *runs.limits)


def _within(found: Interval, lowest: float, highest: float) -> Interval:
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(found.low, lowest), high=min(found.high, highest))


def _mean_score(runs: Runs) -> Interval:
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
    widest = runs.limits[1] - runs.limits[0]
    return _within(_difference(runs, reference, seeds), -widest, widest)


def _difference(runs: Runs, reference: Runs, seeds: Sequence[int]) -> Interval:
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
        over = f"{over} and {' against '.join(str(freedom + 1) for _, freedom in parts[1:])} draws"
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
