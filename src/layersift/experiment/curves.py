"""Curves of score against cost: what a choice of layers had come to on held-back rows at each share of its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layersift.evaluation.metrics import MEANS
from layersift.experiment.choices import ALL, Choice
from layersift.experiment.costs import Costs
from layersift.experiment.judge import Trained
from layersift.records.result import Look
from layersift.statistics.intervals import Interval, Runs, difference
from layersift.statistics.verdicts import limits_of


@dataclass(frozen=True)
class Curve:
    """A choice's scores on the way, the means over seeds and draws."""

    choice: Choice
    flops: tuple[float, ...]  # done at each look, by those of all layers' whole training
    scores: tuple[float, ...]
    from_all: Interval | None = None  # mean difference at equal FLOPs, over those that both curves cover
    reaches: float | None = None  # FLOPs at which it first comes to the target; None: it does not


@dataclass(frozen=True)
class Curves:
    """Those of a comparison."""

    curves: tuple[Curve, ...]
    target: float | None  # what all layers come to in the end, less what counts as near
    missing: tuple[str, ...] = ()  # choices that were trained without being looked at


@dataclass(frozen=True)
class _Looks:
    """Of one choice: (S, K) scores and (S, K, R) outcomes by seed and look, and (D, K) scores by draw."""

    seeds: tuple[int, ...]
    flops: np.ndarray
    scores: np.ndarray
    outcomes: np.ndarray
    draws: np.ndarray
    weights: tuple[float, ...]

    def over(self, low: float, high: float, metric: str, asked: int) -> Runs:
        """The mean of the curve between two costs, as a score of its own."""
        share = mean_weights(self.flops, low, high)
        several = len(self.draws) > 1
        return Runs(
            scores=dict(zip(self.seeds, (self.scores @ share).tolist(), strict=True)),
            outcomes=dict(zip(self.seeds, np.einsum("skr,k->sr", self.outcomes, share), strict=True)),
            averages=metric.split()[0] in MEANS,
            weights=self.weights,
            draws=tuple((self.draws @ share).tolist()) if several else (),
            asked=asked,
            limits=limits_of(metric),
        )


def curves_of(choices: Sequence[Choice], trained: Trained, costs: Costs) -> Curves:
    """Curves of those choices all of whose trainings were looked at, each beside all layers' of the same table."""
    looks = {choice: _looks(choice, trained, costs) for choice in choices if choice.trained}
    if not any(curve_looks is not None for curve_looks in looks.values()):
        return Curves((), None)
    sign, target = trained.unit.sign, None
    whole = next(
        (curve_looks for c, curve_looks in looks.items() if c.name == ALL and c.budget is None and curve_looks), None
    )
    if whole is not None:
        target = float(whole.scores[:, -1].mean()) - sign * trained.unit.near
    curves = []
    for choice, curve_looks in looks.items():
        if curve_looks is None:
            continue
        reference = next((of for c, of in looks.items() if c.name == ALL and c.table == choice.table), None)
        scores = curve_looks.scores.mean(axis=0)
        curves.append(
            Curve(
                choice,
                tuple(curve_looks.flops.tolist()),
                tuple(scores.tolist()),
                None if choice.name == ALL or reference is None else _apart(curve_looks, reference, trained),
                None if target is None else reached(curve_looks.flops, sign * scores, sign * target),
            )
        )
    return Curves(
        tuple(curves), target, tuple(dict.fromkeys(c.name for c, curve_looks in looks.items() if curve_looks is None))
    )


def _looks(choice: Choice, trained: Trained, costs: Costs) -> _Looks | None:
    """None where a training has no looks or failed, or its cost cannot be planned."""
    cells = [[variant.cell(seed) for variant in choice.variants] for seed in trained.seeds]
    seen = [[trained.results[cell].looks if cell in trained.results else () for cell in row] for row in cells]
    several = [looks for row in seen for looks in row]
    if costs.why_not(choice.train.method) is not None or not all(several):
        return None
    if any(look.score is None for looks in several for look in looks):
        return None
    shares = [look.share for look in several[0]]
    scores = np.array([[_scores(looks) for looks in row] for row in seen])  # (S, D, K)
    outcomes = np.array([[[look.outcomes for look in looks] for looks in row] for row in seen])
    done = {trained.results[cell].followed for row in cells for cell in row}
    flops = np.mean([costs.course(cell, shares) for cell in done], axis=0)
    return _Looks(
        trained.seeds,
        flops,
        scores.mean(axis=1),
        outcomes.mean(axis=1),
        scores.mean(axis=0),
        several[0][0].weights,
    )


def _scores(looks: Sequence[Look]) -> list[float]:
    return [look.score or 0.0 for look in looks]


def _apart(own: _Looks, reference: _Looks, trained: Trained) -> Interval | None:
    """The area between two curves, as a mean over the FLOPs that both cover; None where these are none."""
    low = max(own.flops[0], reference.flops[0])
    high = min(own.flops[-1], reference.flops[-1])
    if low >= high:
        return None
    ours, theirs = (looks.over(low, high, trained.metric, len(trained.seeds)) for looks in (own, reference))
    return difference(ours, theirs)


def mean_weights(costs: np.ndarray, low: float, high: float) -> np.ndarray:
    """What each point of a curve (K,) counts in its mean between two costs, the curve being straight between points."""
    from scipy import integrate  # takes half a second to import

    nodes = np.unique([low, *costs[(costs > low) & (costs < high)], high])
    hats = np.array([np.interp(nodes, costs, hat) for hat in np.eye(len(costs))])
    weights: np.ndarray = integrate.trapezoid(hats, nodes, axis=1) / (high - low)
    return weights


def reached(costs: np.ndarray, scores: np.ndarray, target: float) -> float | None:
    """The cost at which a curve, straight between its points, first comes to a score."""
    for place, score in enumerate(scores):
        if score >= target:
            if place == 0:
                return float(costs[0])
            share = (target - scores[place - 1]) / (score - scores[place - 1])
            return float(costs[place - 1] + share * (costs[place] - costs[place - 1]))
    return None
