"""How each choice of layers stands among the others, whether anything was learned at all, and score against cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layersift.config.fields import json_values
from layersift.evaluation.metrics import MEANS, Majority
from layersift.experiment.choices import ALL, BASE, RANDOM, Choice, Key
from layersift.experiment.costs import Costs
from layersift.records.runs import Cell, Look, Result, Variant
from layersift.score.criteria import plain
from layersift.statistics.intervals import Interval, Runs, Unit, difference, limits_of, mean_score, unit_of, verdict

FAILED = "failed"  # the verdict of a row without a score


@dataclass(frozen=True)
class Trained:
    """What the cells of a grid gave, and one line on each that failed."""

    seeds: tuple[int, ...]
    results: Mapping[Cell, Result]
    failures: Mapping[Cell, str]
    settled: Mapping[Key, int] = field(default_factory=dict)  # of a race: seeds of rows that stopped
    asked: int = 0  # of a race: seeds that there would have been

    def seeds_of(self, choice: Choice) -> tuple[int, ...]:
        """Those that a row was to be trained with."""
        return self.seeds[: self.settled.get(choice.key, len(self.seeds))]

    @property
    def metric(self) -> str:
        """The score's name."""
        return next(iter(next(iter(self.results.values())).metrics))

    @property
    def unit(self) -> Unit:
        """How the score is read."""
        return unit_of(self.metric)

    @property
    def environments(self) -> tuple[dict[str, Any], ...]:
        """The different versions, devices and threads that the cells record."""
        made = (json_values(r.made) for r in self.results.values())
        return tuple({json.dumps(m, sort_keys=True): m for m in made}.values())

    @property
    def in_one_place(self) -> bool:
        """Whether all trainings were made on one device with as many threads, so that their times can be compared."""
        return len({(r.made.device, r.made.threads) for r in self.results.values() if r.cell.mask}) < 2

    def done(self, choice: Choice) -> list[Result]:
        """The results behind a choice."""
        return [self.results[cell] for cell in choice.cells(self.seeds_of(choice)) if cell in self.results]

    def score(self, variant: Variant, seed: int) -> float | None:
        """The score of a variant with a seed."""
        result = self.results.get(variant.cell(seed))
        return None if result is None else result.score


@dataclass(frozen=True)
class Judgement:
    """A choice of layers, judged: a row of a table."""

    choice: Choice
    score: Interval | None  # None where a training failed
    from_all: Interval | None
    from_random: Interval | None
    parameters: float | None  # means over its trainings
    seconds: float | None
    memory: float | None
    adapter: float | None  # bytes on disk
    train_loss: float | None
    retention: tuple[float, float] | None  # loss on other text, of the base model and after
    metrics: dict[str, float]
    scores: Mapping[int, Sequence[float | None]]  # by seed, one a mask
    short: str  # "2 of 3 seeds", where some of its trainings failed
    failures: tuple[str, ...]
    verdict: str
    same_as: str = ""  # the row that stands for the same trainings; this one is not compared
    notices: tuple[str, ...] = ()  # of its trainings: what should be known, with what to do
    settled: str = ""  # "settled after 4 of 10 seeds", of a race


def times_left_out(rows: Sequence[Judgement]) -> bool:
    """Whether trainings have no times here, since they were made in environments that cannot be compared."""
    return any(row.parameters is not None and row.seconds is None for row in rows)


def judge(choices: Sequence[Choice], trained: Trained) -> tuple[Judgement, ...]:
    """Every choice beside all layers and random ones of the same method and number, where these were trained."""
    same = same_rows(choices, trained.seeds)
    rows = []
    for choice in choices:
        peers = {c.name: c for c in choices if c.table == choice.table}
        rows.append(_judgement(choice, trained, peers, same.get(choice, "")))
    return tuple(rows)


def same_rows(choices: Sequence[Choice], seeds: Sequence[int]) -> dict[Choice, str]:
    """The choices that are the same trainings as another row of their table, and that row's name.

    Of such rows a plain one stands for the others, or else the first.
    """
    together: dict[Any, list[Choice]] = {}
    for choice in choices:
        if choice.trained:
            together.setdefault((choice.table, frozenset(choice.cells(seeds))), []).append(choice)
    same: dict[Choice, str] = {}
    for several in together.values():
        named = next((c for c in several if c.name in (ALL, *plain.NAMES)), several[0])
        same |= {c: named.name for c in several if c is not named}
    return same


def runs_of(choice: Choice, trained: Trained) -> Runs:
    """Scores by seed. Of several draws, those count that have a score with every seed."""

    def scored(variant: Variant, seed: int) -> Result | None:
        result = trained.results.get(variant.cell(seed))
        return result if result is not None and result.score is not None else None

    variants, seeds = choice.variants, trained.seeds_of(choice)
    if len(variants) > 1:
        variants = tuple(one for one in variants if all(scored(one, seed) for seed in seeds))
    by_seed = {seed: [r for one in variants if (r := scored(one, seed)) is not None] for seed in seeds}
    by_seed = {seed: those for seed, those in by_seed.items() if those}
    scores = {seed: [r.score or 0.0 for r in those] for seed, those in by_seed.items()}
    return Runs(
        scores={seed: float(np.mean(values)) for seed, values in scores.items()},
        outcomes={seed: np.mean([r.outcomes for r in those], axis=0) for seed, those in by_seed.items()},
        averages=trained.metric.split()[0] in MEANS,
        weights=next((those[0].weights for those in by_seed.values()), ()),
        draws=tuple(np.mean(list(scores.values()), axis=0).tolist()) if len(choice.variants) > 1 and scores else (),
        asked=len(trained.seeds),
        limits=limits_of(trained.metric),
    )


def _judgement(choice: Choice, trained: Trained, peers: Mapping[str, Choice], same_as: str) -> Judgement:
    runs, done, seeds = runs_of(choice, trained), trained.done(choice), trained.seeds_of(choice)
    own = set(choice.cells(trained.seeds))
    others = [name for name in (RANDOM, ALL) if name in peers and own != set(peers[name].cells(trained.seeds))]
    references = {} if same_as else {name: runs_of(peers[name], trained) for name in others}
    apart = {name: difference(runs, reference) for name, reference in references.items()}
    undefined = {f"{trained.metric} is undefined with seed {r.cell.seed}" for r in done if r.score is None}
    failed = {trained.failures[cell] for cell in choice.cells(trained.seeds) if cell in trained.failures}
    return Judgement(
        choice=choice,
        score=mean_score(runs) if runs.scores else None,
        from_all=apart.get(ALL),
        from_random=apart.get(RANDOM),
        parameters=_mean(done, lambda r: r.trainable_parameters),
        seconds=_mean(done, lambda r: r.train_seconds) if trained.in_one_place else None,
        memory=_mean(done, lambda r: r.peak_memory_bytes),
        adapter=_mean(done, lambda r: r.adapter_bytes),
        train_loss=_mean(done, lambda r: r.train_loss),
        retention=_retention(choice, trained, done),
        metrics=_metrics(done),
        scores={seed: [trained.score(variant, seed) for variant in choice.variants] for seed in seeds},
        short=_short(choice, runs, seeds),
        failures=tuple(sorted(failed | undefined)),
        verdict=_verdict(apart, references, trained.unit, same_as) if runs.scores else FAILED,
        same_as=same_as,
        notices=_notices(done),
        settled=f"settled after {len(seeds)} of {trained.asked} seeds" if choice.key in trained.settled else "",
    )


def _verdict(apart: Mapping[str, Interval | None], references: Mapping[str, Runs], unit: Unit, same_as: str) -> str:
    """What the intervals allow to be said."""
    if same_as:
        return f"same layers as {same_as}"
    # One draw may be a lucky or an unlucky one, and nothing here says which.
    lone = RANDOM in references and len(references[RANDOM].draws) < 2
    names = {RANDOM: "one random choice" if lone else RANDOM}
    return "; ".join(verdict(interval, names.get(name, name), unit) for name, interval in apart.items())


def _notices(done: Sequence[Result]) -> tuple[str, ...]:
    """Each notice of the trainings once, with how many of them it is about."""
    counts = Counter(notice for result in done for notice in result.notices)
    of = f" of {len(done)} trainings: " if len(done) > 1 else ""
    return tuple(f"{count}{of}{notice}" if of else notice for notice, count in counts.items())


def _mean(done: Sequence[Result], read: Callable[[Result], float | None]) -> float | None:
    values = [v for v in map(read, done) if v is not None]
    return float(np.mean(values)) if values else None


def _metrics(done: Sequence[Result]) -> dict[str, float]:
    """Every metric's mean over the trainings where it is defined."""
    means = {}
    for name in done[0].metrics if done else ():
        values = [v for r in done if (v := r.metrics[name]) is not None]
        if values:
            means[name] = float(np.mean(values))
    return means


def _retention(choice: Choice, trained: Trained, done: Sequence[Result]) -> tuple[float, float] | None:
    base = [r for cell, r in trained.results.items() if not cell.mask and cell.seed == trained.seeds[0]]
    before, after = base[0].retention_loss if base else None, _mean(done, lambda r: r.retention_loss)
    return None if before is None or after is None or choice.name == BASE else (before, after)


def _short(choice: Choice, runs: Runs, seeds: Sequence[int]) -> str:
    """What a row's figures are of, where some of its trainings failed; empty where none did."""
    if len(choice.masks) > 1 and len(runs.draws) < len(choice.masks):
        return f"{len(runs.draws)} of {len(choice.masks)} draws"
    return f"{len(runs.scores)} of {len(seeds)} seeds" if len(runs.scores) < len(seeds) else ""


TRY = "Check the labels and the learning rate, or train for more epochs."


def nothing_learned(choices: Sequence[Choice], trained: Trained, majority: Majority | None) -> str | None:
    """What to say where no row beats the most common class, or the base model, beyond its interval.

    The most common class counts for accuracy, a constant class for Matthews' correlation, and the base model, where it
    was judged, for all other metrics.

    Returns:
        None where a row beats it, where one does by a score without an interval, or where there is nothing to beat.
    """
    runs = {choice: runs_of(choice, trained) for choice in choices}
    rows = [of for choice, of in runs.items() if choice.trained and of.scores]
    bar = constant_class(trained.metric, majority)
    if bar is not None:
        beaten = [_beats(mean_score(of), bar) for of in rows]
        what = f"always {majority.name!r}, the most common class in training" if majority else ""
    else:
        base = next((of for choice, of in runs.items() if choice.name == BASE and of.scores), None)
        beaten = [] if base is None else [_improves(of, base, trained.unit.sign) for of in rows]
        what = "the base model without training"
    if not beaten or any(one is not False for one in beaten):
        return None
    unit = trained.unit
    level = "" if bar is None else f" ({trained.metric} {unit.tell(bar)} {unit.name})"
    return f"Nothing was learned: no row scores significantly better than {what}{level}. So nothing is ranked. {TRY}"


def constant_class(metric: str, majority: Majority | None) -> float | None:
    """What a constant class scores; None where that is not known."""
    name, _, source = metric.partition(" ")
    if majority is None:
        return None
    return 0.0 if name == "matthews" else majority.accuracy.get(source) if name == "accuracy" else None


def _beats(score: Interval, bar: float) -> bool | None:
    """None where the score is higher, but has no interval."""
    if score.low is None:
        return None if score.value > bar else False
    return score.low > bar


def _improves(of: Runs, base: Runs, sign: int) -> bool | None:
    apart = difference(of, base)
    if apart is None or sign * apart.value <= 0:
        return False
    return None if apart.low is None else not apart.holds_zero


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
    seeds = trained.seeds_of(choice)
    cells = [[variant.cell(seed) for variant in choice.variants] for seed in seeds]
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
        seeds,
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
