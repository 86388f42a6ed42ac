"""Intervals of scores over seeds and of paired differences, and what an interval allows to be said in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri, stdtrit  # scipy.stats takes a second to import


def error_of_mean(outcomes: Sequence[float], weights: Sequence[float] = ()) -> float:
    """Standard error, over at least two samples, of their mean weighted by ``weights``, n of each (Cochran 1977, 6.13).

    The weights are as much drawn as the outcomes are, since a loss a token is a ratio of two sums.
    """
    values = np.asarray(outcomes, dtype=float)
    shares = np.asarray(weights, dtype=float) / np.mean(weights) if len(weights) else np.ones(len(values))
    return float(np.std(shares * (values - np.mean(shares * values)), ddof=1) / math.sqrt(len(values)))


CONFIDENCE = 0.95
POWER = 0.8  # with which a difference that is called visible is seen


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, and what that is taken over."""

    value: float
    low: float | None  # None where one figure alone says nothing of its spread
    high: float | None
    over: str  # "3 seeds and 500 test samples"
    visible: float | None = None  # of a difference: how large it has to be for four such intervals of five to show it

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

    def _spread_of_draws(self) -> list[tuple[float, int]]:
        if len(self.draws) < 2:
            return []
        return [(float(np.var(self.draws, ddof=1)) / len(self.draws), len(self.draws) - 1)]


def mean_score(runs: Runs) -> Interval:
    """The score, for other seeds and other test samples of the task; it ends where the score does.

    Of one seed alone it speaks of other samples only, with Wilson's interval where they are right or wrong; of scores
    that are no mean over samples, such as a correlation, of other seeds only. Random draws widen it by the spread
    between them.
    """
    return _within(_mean_score(runs), *runs.limits)


def _within(interval: Interval, lowest: float, highest: float) -> Interval:
    if interval.low is None or interval.high is None:
        return interval
    return replace(interval, low=max(interval.low, lowest), high=min(interval.high, highest))


def _mean_score(runs: Runs) -> Interval:
    seeds, draws = list(runs.scores), runs._spread_of_draws()
    if runs.by_samples:
        (outcomes,) = runs.outcomes.values()
        value, over = runs.scores[seeds[0]], f"{len(outcomes)} test samples"
        if runs.counts and not draws:
            from scipy import stats

            proportion = stats.binomtest(round(outcomes.sum()), len(outcomes)).proportion_ci(CONFIDENCE, "wilson")
            return Interval(value, float(proportion.low), float(proportion.high), over)
        return _over_samples(value, outcomes, runs, draws, over)
    values = list(runs.scores.values())
    if not runs.averages or len(seeds) < 2:
        return _over_seeds(values, draws)
    return _crossed(values, np.array([runs.outcomes[s] for s in seeds]), runs, draws)


def difference(runs: Runs, reference: Runs) -> Interval | None:
    """``runs`` minus ``reference``, paired by seed and by test sample. None without a seed that both have.

    The interval is for other seeds and other samples of the task, as :func:`mean_score`'s. Of one seed alone it is that
    of Agresti and Min (2005) where samples are right or wrong. Random draws on either side widen it by the spread
    between them, by Cochran and Cox's rule.
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
    if not runs.averages or len(seeds) < 2:
        return _over_seeds(apart, draws)
    rows = np.array([runs.outcomes[s] - reference.outcomes[s] for s in seeds])
    return _crossed(apart, rows, runs, draws)


def _crossed(values: Sequence[float], rows: np.ndarray, runs: Runs, draws: list[tuple[float, int]]) -> Interval:
    """The interval of a mean over seeds crossed with test samples, both drawn from many (Brennan 2001, 3.2).

    Args:
        values: a figure a seed (S,).
        rows: what it is the mean of (S, R).
    """
    seeds, samples = rows.shape
    by_seed = float(np.var(values, ddof=1)) / seeds
    if samples < 2:
        return _around(float(np.mean(values)), [(by_seed, seeds - 1), *draws], f"{seeds} seeds", len(draws))
    by_sample = error_of_mean(rows.mean(axis=0).tolist(), runs.weights) ** 2
    if runs.counts:  # half a right answer to either side, so that samples that all agree do not pass for certainty
        by_sample += 1 / (seeds * samples**2)
    rest = rows - rows.mean(axis=0) - rows.mean(axis=1, keepdims=True) + rows.mean()
    # What both of them hold of the seeds' and samples' interplay counts once.
    both = sum(error_of_mean(of.tolist(), runs.weights) ** 2 for of in rest) / (seeds * (seeds - 1))
    of_samples_alone = max(0.0, by_sample - min(both, by_seed))
    over = f"{seeds} seeds and {samples} test samples"
    parts = [(by_seed, seeds - 1), (of_samples_alone, samples - 1), *draws]
    return _around(float(np.mean(values)), parts, over, len(draws))


def _over_seeds(values: Sequence[float], draws: list[tuple[float, int]]) -> Interval:
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, None, None, "1 seed")
    return _around(mean, [(float(np.var(values, ddof=1)) / n, n - 1), *draws], f"{n} seeds", len(draws))


def _over_samples(
    value: float, outcomes: np.ndarray, runs: Runs, draws: list[tuple[float, int]], over: str
) -> Interval:
    if len(outcomes) < 2:
        return Interval(value, None, None, "1 test sample")
    own = error_of_mean(outcomes.tolist(), runs.weights) ** 2
    return _around(value, [(own, len(outcomes) - 1), *draws], over, len(draws))


def _around(value: float, parts: Sequence[tuple[float, int]], over: str, draws: int) -> Interval:
    """The interval by independent variances of the mean and their degrees of freedom, the last ``draws`` of draws.

    Each variance counts with the quantile of its own degrees of freedom (Cochran and Cox 1950). Satterthwaite's degrees
    of freedom of the sum are too many where the variance of two or three seeds comes out small by chance.
    """
    variance = sum(v for v, _ in parts)
    if draws:
        over = f"{over} and {' against '.join(str(freedom + 1) for _, freedom in parts[-draws:])} draws"
    if variance == 0:
        return Interval(value, value, value, over)
    half, power = (
        sum(v * float(stdtrit(freedom, p)) for v, freedom in parts) / math.sqrt(variance)
        for p in ((1 + CONFIDENCE) / 2, POWER)
    )
    return Interval(value, value - half, value + half, over, half + power)


def _paired_counts(value: float, apart: np.ndarray, over: str) -> Interval:
    """Wald's interval after half an answer is added to each cell of the 2 x 2 table, so that few answers that differ,
    or none, do not pass for certainty."""
    n = len(apart) + 2
    better, worse = float((apart > 0).sum()) + 0.5, float((apart < 0).sum()) + 0.5
    centre = (better - worse) / n
    variance = ((better + worse) / n - centre**2) / n
    half, power = (float(ndtri(p)) * math.sqrt(variance) for p in ((1 + CONFIDENCE) / 2, POWER))
    return Interval(value, centre - half, centre + half, over, half + power)


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
