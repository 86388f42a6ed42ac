"""The rows of a comparison: which trainings stand behind each, and how it stands among the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from layersift.compare.cells import Cell, CellResult, mask_of
from layersift.compare.field import Field, Scored
from layersift.compare.rates import random_masks
from layersift.compare.recipe import Recipe
from layersift.compare.statistics import Interval, Runs, difference, mean_score, unit_of, verdict
from layersift.evaluate.metrics import MEANS
from layersift.load.data import TaskKind
from layersift.provenance import command, machine, versions
from layersift.score import plain

RANDOM, ALL, MATCHED, UNTOUCHED = "random", "all", "all, matched rank", "untouched"


@dataclass(frozen=True)
class Entry:
    """A row of a table: which trainings stand behind it."""

    name: str
    size: int
    method: str
    masks: tuple[str, ...]  # several for random layers
    learning_rate: float
    rank: int
    alpha: int
    scoring_seconds: float | None = None

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Its cells, for each seed."""
        return [self.cell(mask, seed) for seed in seeds for mask in self.masks]

    def cell(self, mask: str, seed: int) -> Cell:
        """The cell of a mask and a seed."""
        if not mask:
            return Cell("", seed)
        return Cell(mask, seed, self.method, self.learning_rate, self.rank, self.alpha)


@dataclass(frozen=True)
class Standing:
    """A row of a table, judged."""

    entry: Entry
    score: Interval | None  # None where a training failed
    from_all: Interval | None
    from_random: Interval | None
    parameters: float | None  # means over its trainings
    seconds: float | None
    memory: float | None
    retention: float | None  # change of the loss on other text
    metrics: dict[str, float]
    failures: tuple[str, ...]
    verdict: str


@dataclass(frozen=True)
class Contest:
    """What `compare` found."""

    recipe: Recipe
    kind: TaskKind
    metric: str
    num_layers: int
    seeds: tuple[int, ...]
    scored: tuple[Scored, ...]
    positions: Mapping[str, tuple[int, ...]]  # the selection by the first criterion that reads tokens, at each position
    matrix: tuple[tuple[float | None, ...], ...]  # CKA of every R_i with every R_j
    standings: tuple[Standing, ...]
    rates: Mapping[str, float]  # learning rates by method and number of layers
    left_out: Mapping[str, str]  # criteria without scores here, and why
    data: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        made = {"recipe": self.recipe.to_json(), "command": command(), "versions": versions(), "machine": machine()}
        found = {
            name: getattr(self, name)
            for name in ("kind", "metric", "num_layers", "seeds", "positions", "matrix", "rates", "left_out", "data")
        }
        scored = [asdict(s) | {"layers": s.layers} for s in self.scored]
        return {
            "schema_version": 1,
            **made,
            **found,
            "scored": scored,
            "standings": [asdict(s) for s in self.standings],
        }


def entries_of(
    recipe: Recipe, field: Field, sizes: Sequence[int], methods: Sequence[str], rates: Mapping[tuple[str, int], float]
) -> list[Entry]:
    """The rows of all tables: criteria, and what they are held against."""
    layers, train = field.stack.num_layers, recipe.train
    found = []
    for method in methods:
        for size in sizes:
            rate, of_all = rates[method, size], rates[method, layers]
            for scored in (s for s in field.scored if s.size == size):
                if scored.scores.criterion == plain.RANDOM.name:
                    continue
                mask = mask_of(scored.layers, layers)
                seconds = scored.scores.seconds
                found.append(
                    Entry(scored.scores.criterion, size, method, (mask,), rate, train.rank, train.alpha, seconds)
                )
            draws = random_masks(layers, size, recipe.compare.random, recipe.seed)
            everywhere = ("1" * layers,)
            rank, alpha = (max(1, round(v * size / layers)) for v in (train.rank, train.alpha))
            found += [
                Entry(RANDOM, size, method, draws, rate, train.rank, train.alpha),
                Entry(ALL, size, method, everywhere, of_all, train.rank, train.alpha),
                Entry(MATCHED, size, method, everywhere, of_all, rank, alpha),
                Entry(UNTOUCHED, size, method, ("",), 0.0, train.rank, train.alpha),
            ]
    return found


def judge(
    recipe: Recipe,
    field: Field,
    entries: Sequence[Entry],
    rates: Mapping[tuple[str, int], float],
    seeds: Sequence[int],
    results: Mapping[Cell, CellResult],
    failures: Mapping[Cell, str],
) -> Contest:
    """Tables of what the cells gave."""
    metric = next(iter(next(iter(results.values())).metrics))
    standings = []
    for entry in entries:
        peers = {e.name: e for e in entries if (e.size, e.method) == (entry.size, entry.method)}
        of_all, of_random = (_runs(peers[name], seeds, results, metric) for name in (ALL, RANDOM))
        untouched = results.get(Cell("", seeds[0]))
        standings.append(_standing(entry, seeds, results, failures, metric, of_all, of_random, untouched))
    return Contest(
        recipe=recipe,
        kind=field.kind,
        metric=metric,
        num_layers=field.stack.num_layers,
        seeds=tuple(seeds),
        scored=field.scored,
        positions=field.positions,
        matrix=field.matrix,
        standings=tuple(standings),
        rates={f"{method}, {count} layers": rate for (method, count), rate in rates.items()},
        left_out=field.left_out,
        data=field.data,
    )


def _runs(entry: Entry, seeds: Sequence[int], results: Mapping[Cell, CellResult], metric: str) -> Runs:
    """Scores by seed, of those seeds for which all of the entry's trainings succeeded."""
    scores, outcomes = {}, {}
    for seed in seeds:
        found = [results.get(entry.cell(mask, seed)) for mask in entry.masks]
        values = [r.score for r in found if r is not None and r.score is not None]
        if len(values) == len(entry.masks):
            scores[seed] = float(np.mean(values))
            outcomes[seed] = np.mean([r.outcomes for r in found if r is not None], axis=0)
    return Runs(scores, outcomes, metric.split()[0] in MEANS)


def _standing(
    entry: Entry,
    seeds: Sequence[int],
    results: Mapping[Cell, CellResult],
    failures: Mapping[Cell, str],
    metric: str,
    of_all: Runs,
    of_random: Runs,
    untouched: CellResult | None,
) -> Standing:
    runs = _runs(entry, seeds, results, metric)
    done = [results[cell] for cell in entry.cells(seeds) if cell in results]
    unit = unit_of(metric)
    from_all = difference(runs, of_all) if entry.name != ALL else None
    from_random = difference(runs, of_random) if entry.name != RANDOM else None

    def mean(read: Callable[[CellResult], float | None]) -> float | None:
        values = [v for v in map(read, done) if v is not None]
        return float(np.mean(values)) if values else None

    before = untouched.retention_loss if untouched else None
    after = mean(lambda r: r.retention_loss)
    said = [verdict(d, than, unit) for d, than in ((from_random, RANDOM), (from_all, ALL)) if d is not None]
    names = list(done[0].metrics) if done else []
    return Standing(
        entry=entry,
        score=mean_score(runs) if runs.scores else None,
        from_all=from_all,
        from_random=from_random,
        parameters=mean(lambda r: r.trainable_parameters),
        seconds=mean(lambda r: r.train_seconds),
        memory=mean(lambda r: r.peak_memory_bytes),
        retention=after - before if after is not None and before is not None and entry.name != UNTOUCHED else None,
        metrics={name: v for name in names if (v := mean(lambda r, n=name: r.metrics[n])) is not None},  # type: ignore[misc]
        failures=tuple(sorted({failures[cell] for cell in entry.cells(seeds) if cell in failures})),
        verdict="; ".join(said) if runs.scores else "failed",
    )
