"""How each choice of layers stands among the others, and whether anything was learned at all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layersift.config.fields import json_values
from layersift.evaluation.classes import Majority
from layersift.evaluation.metrics import MEANS
from layersift.experiment.choices import ALL, BASE, RANDOM, Choice
from layersift.records.result import Cell, Result, Variant
from layersift.score.criteria import plain
from layersift.statistics.intervals import Interval, Runs, difference, mean_score
from layersift.statistics.verdicts import Unit, limits_of, unit_of, verdict

FAILED = "failed"  # the verdict of a row without a score


@dataclass(frozen=True)
class Trained:
    """What the cells of a grid gave, and one line on each that failed."""

    seeds: tuple[int, ...]
    results: Mapping[Cell, Result]
    failures: Mapping[Cell, str]

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
        return [self.results[cell] for cell in choice.cells(self.seeds) if cell in self.results]

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

    variants = choice.variants
    if len(variants) > 1:
        variants = tuple(one for one in variants if all(scored(one, seed) for seed in trained.seeds))
    by_seed = {seed: [r for one in variants if (r := scored(one, seed)) is not None] for seed in trained.seeds}
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
    runs, done = runs_of(choice, trained), trained.done(choice)
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
        scores={seed: [trained.score(variant, seed) for variant in choice.variants] for seed in trained.seeds},
        short=_short(choice, runs, trained.seeds),
        failures=tuple(sorted(failed | undefined)),
        verdict=_verdict(apart, references, trained.unit, same_as) if runs.scores else FAILED,
        same_as=same_as,
        notices=_notices(done),
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
    bar = _constant_class(trained.metric, majority)
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


def _constant_class(metric: str, majority: Majority | None) -> float | None:
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
