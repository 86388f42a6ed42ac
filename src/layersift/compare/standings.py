"""The rows of a comparison: which trainings stand behind each, and how it stands among the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from layersift.adapt.methods import has_rank
from layersift.compare.cells import Cell, CellResult, mask_of
from layersift.compare.field import Field, Scored
from layersift.compare.rates import Rate, random_masks
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
    alpha: float
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
    adapter: float | None  # bytes on disk
    train_loss: float | None
    retention: tuple[float, float] | None  # loss on other text, of the untouched model and after
    metrics: dict[str, float]
    scores: Mapping[int, Sequence[float | None]]  # by seed, one a mask
    short: str  # "2 of 3 seeds", where some of its trainings failed
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
    rates: Mapping[str, Rate]  # learning rates by method and number of layers
    left_out: Mapping[str, str]  # criteria without scores here, and why
    data: Mapping[str, Any]
    contents: Mapping[str, Any]  # fingerprints of model and data
    made: tuple[Mapping[str, Any], ...]  # the different versions, devices and threads that its cells record

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        made = {"recipe": self.recipe.to_json(), "command": command(), "versions": versions(), "machine": machine()}
        found = {
            name: getattr(self, name)
            for name in ("kind", "metric", "num_layers", "seeds", "positions", "matrix", "left_out", "data", "contents")
        }
        scored = [asdict(s) | {"layers": s.layers} for s in self.scored]
        return {
            "schema_version": 1,
            **made,
            **found,
            "made": list(self.made),
            "rates": {of: asdict(rate) for of, rate in self.rates.items()},
            "scored": scored,
            "standings": [asdict(s) for s in self.standings],
        }


def entries_of(
    recipe: Recipe, field: Field, sizes: Sequence[int], methods: Sequence[str], rates: Mapping[tuple[str, int], Rate]
) -> list[Entry]:
    """The rows of all tables: criteria, and what they are held against."""
    layers, train = field.stack.num_layers, recipe.train
    found = []
    for method in methods:
        for size in sizes:
            rate, of_all = rates[method, size].chosen, rates[method, layers].chosen
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
            found += [
                Entry(RANDOM, size, method, draws, rate, train.rank, train.alpha),
                Entry(ALL, size, method, everywhere, of_all, train.rank, train.alpha),
            ]
            if has_rank(method) and not train.ranks and "r" not in train.method_options:
                rank = max(1, round(train.rank * size / layers))
                alpha = train.alpha * rank / train.rank  # so that updates are scaled as in the other rows
                found.append(Entry(MATCHED, size, method, everywhere, of_all, rank, alpha))
            found += [
                Entry(UNTOUCHED, size, method, ("",), 0.0, train.rank, train.alpha),
            ]
    return found


def judge(
    recipe: Recipe,
    field: Field,
    entries: Sequence[Entry],
    rates: Mapping[tuple[str, int], Rate],
    seeds: Sequence[int],
    results: Mapping[Cell, CellResult],
    failures: Mapping[Cell, str],
    contents: Mapping[str, Any],
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
        contents=contents,
        made=tuple({json.dumps(r.made, sort_keys=True): r.made for r in results.values()}.values()),
    )


def _runs(entry: Entry, seeds: Sequence[int], results: Mapping[Cell, CellResult], metric: str) -> Runs:
    """Scores by seed. Of several draws, those count that have a score with every seed."""

    def found(mask: str, seed: int) -> CellResult | None:
        result = results.get(entry.cell(mask, seed))
        return result if result is not None and result.score is not None else None

    masks = entry.masks
    if len(masks) > 1:
        masks = tuple(mask for mask in masks if all(found(mask, seed) for seed in seeds))
    by_seed = {seed: [r for mask in masks if (r := found(mask, seed)) is not None] for seed in seeds}
    by_seed = {seed: those for seed, those in by_seed.items() if those}
    scores = {seed: [r.score or 0.0 for r in those] for seed, those in by_seed.items()}
    return Runs(
        scores={seed: float(np.mean(values)) for seed, values in scores.items()},
        outcomes={seed: np.mean([r.outcomes for r in those], axis=0) for seed, those in by_seed.items()},
        averages=metric.split()[0] in MEANS,
        weights=next((those[0].weights for those in by_seed.values()), ()),
        draws=tuple(np.mean(list(scores.values()), axis=0).tolist()) if len(entry.masks) > 1 and scores else (),
        asked=len(seeds),
    )


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
    cells = entry.cells(seeds)
    done = [results[cell] for cell in cells if cell in results]
    unit = unit_of(metric)
    from_all = difference(runs, of_all) if entry.name != ALL else None
    from_random = difference(runs, of_random) if entry.name != RANDOM else None

    def mean(read: Callable[[CellResult], float | None]) -> float | None:
        values = [v for v in map(read, done) if v is not None]
        return float(np.mean(values)) if values else None

    before = untouched.retention_loss if untouched else None
    after = mean(lambda r: r.retention_loss)
    # One draw may be a lucky or an unlucky one, and nothing here says which.
    random = RANDOM if len(of_random.draws) > 1 else "one random choice"
    said = [
        verdict(apart, than, unit)
        for apart, than, name in ((from_random, random, RANDOM), (from_all, ALL, ALL))
        if name != entry.name
    ]
    names = list(done[0].metrics) if done else []
    undefined = {f"{metric} is undefined with seed {r.cell.seed}" for r in done if r.score is None}
    return Standing(
        entry=entry,
        score=mean_score(runs) if runs.scores else None,
        from_all=from_all,
        from_random=from_random,
        parameters=mean(lambda r: r.trainable_parameters),
        seconds=mean(lambda r: r.train_seconds),
        memory=mean(lambda r: r.peak_memory_bytes),
        adapter=mean(lambda r: r.adapter_bytes),
        train_loss=mean(lambda r: r.train_loss),
        retention=None if before is None or after is None or entry.name == UNTOUCHED else (before, after),
        metrics={name: v for name in names if (v := mean(lambda r, n=name: r.metrics[n])) is not None},  # type: ignore[misc]
        scores={seed: [_score(results.get(entry.cell(mask, seed))) for mask in entry.masks] for seed in seeds},
        short=_short(entry, runs, seeds),
        failures=tuple(sorted({failures[cell] for cell in cells if cell in failures} | undefined)),
        verdict="; ".join(said) if runs.scores else "failed",
    )


def _score(result: CellResult | None) -> float | None:
    return None if result is None else result.score


def _short(entry: Entry, runs: Runs, seeds: Sequence[int]) -> str:
    """What a row's figures are of, where some of its trainings failed; empty where none did."""
    if len(entry.masks) > 1 and len(runs.draws) < len(entry.masks):
        return f"{len(runs.draws)} of {len(entry.masks)} draws"
    return f"{len(runs.scores)} of {len(seeds)} seeds" if len(runs.scores) < len(seeds) else ""
