"""`layersift compare`: every criterion's layers trained alike, and what tells them apart."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from layersift.compare.cells import Cell, CellResult, mask_of, split_tables
from layersift.compare.grid import check_jobs, run_cells
from layersift.compare.pipeline import prepare_tables
from layersift.compare.recipe import Recipe
from layersift.compare.statistics import Interval, Runs, difference, mean_score, unit_of, verdict
from layersift.errors import LayersiftError, SelectionError
from layersift.evaluate.metrics import MEANS
from layersift.files import differences, read_json, write_json
from layersift.load.blocks import BlockStack, choose_stack, find_stacks
from layersift.load.data import TaskKind
from layersift.load.models import empty_model, load_model
from layersift.progress import Reporter
from layersift.provenance import command, machine, versions
from layersift.represent.positions import POSITIONS
from layersift.score import plain
from layersift.score.base import Criterion, LayerScores
from layersift.score.stability import Stability, convergence, stability
from layersift.score.subject import Subject, score_layers
from layersift.score.table import find_criterion
from layersift.select.choose import sample_table, subject_of

CELLS = "cells"
RANDOM, ALL, MATCHED, UNTOUCHED = "random", "all", "all, matched rank", "untouched"


@dataclass(frozen=True)
class Scored:
    """A criterion's scores, for a number of layers, and how sure they are."""

    scores: LayerScores
    stability: Stability | None
    size: int
    converged: tuple[tuple[int, float], ...] = ()  # by sample size: share of the layers that so many samples find

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers chosen."""
        return self.scores.top(self.size)


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


def sizes_of(recipe: Recipe, num_layers: int) -> list[int]:
    """The numbers of layers to compare at; half of them where the recipe names none.

    Raises:
        SelectionError: more layers than there are.
    """
    sizes = recipe.compare.sizes or [max(1, num_layers // 2)]
    if max(sizes) >= num_layers:
        raise SelectionError(f"compare.sizes {sizes}: there are {num_layers} layers; fewer can be chosen among them")
    return sizes


def random_masks(num_layers: int, size: int, draws: int, seed: int) -> tuple[str, ...]:
    """Different masks of ``size`` layers, drawn by the seed; as many as there are, at most ``draws``."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    for _ in range(50 * draws):
        if len(found) < draws:
            found[mask_of(sorted(generator.choice(num_layers, size, replace=False).tolist()), num_layers)] = None
    return tuple(found)


def open_grid(recipe: Recipe) -> Path:
    """The output directory: new, or of a grid whose cells are the same. Criteria, sizes and seeds may have changed.

    Raises:
        LayersiftError: it exists and belongs to something else.
    """
    output = Path(recipe.output)
    whole = json.loads(json.dumps(recipe.to_json()))
    same = {name: whole[name] for name in ("model", "data", "train", "evaluate", "seed")}
    same |= {"retention": recipe.compare.retention, "tuned": len(recipe.compare.learning_rates) > 1}
    if not output.exists():
        write_json(output / "grid.json", same)
    elif not (output / "grid.json").is_file():
        raise LayersiftError(f"{output} exists and holds no grid of trainings; give another --output")
    else:
        before = read_json(output / "grid.json", "the plan of a grid")
        # Settings that a version before did not know had the effect of their defaults.
        changed = [name for name in differences(before, same) if _has(before, name)]
        if changed:
            raise LayersiftError(
                f"{output} holds trainings of another recipe (other {', '.join(changed)}); give another --output"
            )
    return output


def _has(values: dict[str, Any], name: str) -> bool:
    """Whether there is an entry of that dotted name."""
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


@dataclass(frozen=True)
class Field:
    """What is compared, before anything is trained."""

    stack: BlockStack
    kind: TaskKind
    scored: tuple[Scored, ...]
    positions: dict[str, tuple[int, ...]]
    matrix: tuple[tuple[float | None, ...], ...]
    left_out: dict[str, str]  # criteria that have no scores here, and why
    data: dict[str, Any]


def score_all(recipe: Recipe, sizes: Sequence[int], reporter: Reporter) -> Field:
    """Every criterion's scores for every size, from one forward and one backward pass over one sample.

    Raises:
        LayersiftError: the data or the model cannot be used.
    """
    tables, _ = split_tables(recipe)
    prepared = prepare_tables(recipe, tables, reporter)
    encoder = prepared.encoder
    loaded = load_model(
        recipe.model, encoder.kind, max(1, len(encoder.classes)), recipe.seed, encoder.processor is not None
    )
    stack = choose_stack(find_stacks(loaded.model), recipe.select.tower)
    if stack.joined:
        raise SelectionError("compare knows one stack of blocks; name one tower")
    select = replace(recipe.select, compat=None)  # the criteria choose, not the published scripts
    sample = sample_table(tables.train, encoder, select)
    steps = recipe.train.steps(len(prepared.train.examples))
    with reporter.stage("reading the sample", len(sample.examples)) as progress:
        subject = subject_of(
            loaded.model,
            stack,
            sample,
            replace(select, probe_steps=max(1, round(recipe.compare.probe_share * steps))),
            loaded.pad_id,
            progress=progress,
            adapter=recipe.train.adapter(encoder.kind, 1, encoder.seq2seq),
        )
        criteria = [find_criterion(name) for name in recipe.compare.criteria]
        subject.plan([*criteria, *_at_all_positions(subject)])
        scored, left_out = _score(criteria, subject, sizes, reporter)
    first = next((c for c in criteria if c.at is not None and c.name.partition("@")[0] in ("cka", "cka-robust")), None)
    by_position = _at_all_positions(subject, first or find_criterion("cka"))
    chosen = {c.position or "": score_layers(c, subject).top(sizes[0]) for c in by_position}
    data: dict[str, Any] = {
        "source": tables.train.source,
        "rows": len(tables.train.rows),
        "fingerprint": tables.train.fingerprint,
    }
    data["sample"] = len(sample.examples)
    return Field(stack, encoder.kind, tuple(scored), chosen, _matrix(subject), left_out, data)


def _at_all_positions(subject: Subject, criterion: Criterion | None = None) -> list[Criterion]:
    """The criterion at every position that the sample's task has."""
    at = (criterion or find_criterion("cka")).at
    responses = all(e.response is not None for e in subject.examples)
    names = [name for name in POSITIONS if responses or name != "response-mean"]
    return [at(name) for name in names] if at is not None else []


def _score(
    criteria: list[Criterion], subject: Subject, sizes: Sequence[int], reporter: Reporter
) -> tuple[list[Scored], dict[str, str]]:
    """Scores, and why those criteria are left out that have none here.

    Raises:
        SelectionError: not one criterion has.
    """
    found: list[Scored] = []
    left_out: dict[str, str] = {}
    for criterion in criteria:
        scored = _score_or_why_not(criterion, subject, sizes, reporter)
        if isinstance(scored, str):
            left_out[criterion.name] = scored
            reporter.say(f"left out: {criterion.name}: {scored}")
        else:
            found += scored
    if not found:
        raise SelectionError(f"not one criterion has scores here; the first: {next(iter(left_out.values()))}")
    return found, left_out


def _score_or_why_not(
    criterion: Criterion, subject: Subject, sizes: Sequence[int], reporter: Reporter
) -> list[Scored] | str:
    try:
        return _score_one(criterion, subject, sizes, reporter)
    except LayersiftError as error:
        return str(error)


def _score_one(criterion: Criterion, subject: Subject, sizes: Sequence[int], reporter: Reporter) -> list[Scored]:
    found: list[Scored] = []
    for size in sizes:
        started = time.perf_counter()
        if found and criterion.needs != "training":
            scores = found[0].scores
        else:
            scores = score_layers(criterion, replace(subject, count=size))
        if not scores.ranking:
            raise SelectionError(f"no layer has a score ({next(iter(scores.undefined.values()))})")
        sure, converged = stability(criterion, subject, size), convergence(criterion, subject, size)
        found.append(Scored(scores, sure, size, converged))
        mask = mask_of(found[-1].layers, subject.num_layers)
        reporter.say(f"{criterion.name}: {mask} ({time.perf_counter() - started:.1f} s)")
    return found


def _matrix(subject: Subject) -> tuple[tuple[float | None, ...], ...]:
    """Debiased CKA of every R_i with every R_j at the default position; None where one is constant."""
    from layersift.measures import MEASURES
    from layersift.score.similarity import why_undefined

    read, measure = subject.representations(), MEASURES["cka"]
    prepared = [None if why_undefined(s, read.dtype) else measure.prepare(s.double()) for s in read.states]
    return tuple(
        tuple(None if a is None or b is None else round(measure.compare(a, b), 6) for b in prepared) for a in prepared
    )


def choose_rates(
    recipe: Recipe,
    num_layers: int,
    sizes: Sequence[int],
    methods: Sequence[str],
    jobs: int,
    kind: TaskKind,
    reporter: Reporter,
) -> dict[tuple[str, int], float]:
    """The learning rate for each method and number of layers: the one that trains *random* layers best.

    Judged on rows held back from training, never on test rows, and with layers that no criterion chose, so that all
    criteria are treated alike.

    Raises:
        LayersiftError: none of the trainings succeeded.
    """
    rates = recipe.compare.learning_rates
    counts = [*sizes, num_layers]
    if len(rates) < 2:
        rate = rates[0] if rates else recipe.train.rate(kind)
        return {(method, count): rate for method in methods for count in counts}
    cells: dict[tuple[str, int], list[Cell]] = {}
    for method in methods:
        for count in counts:
            (mask,) = random_masks(num_layers, count, 1, recipe.seed)
            train = recipe.train
            cells[method, count] = [
                Cell(mask, recipe.seed, method, rate, train.rank, train.alpha, "validation") for rate in rates
            ]
    every = [cell for group in cells.values() for cell in group]
    results, _ = run_cells(recipe, every, Path(recipe.output) / CELLS, jobs, reporter, "choosing learning rates")
    chosen = {}
    for key, group in cells.items():
        done = [(results[c], c.learning_rate) for c in group if c in results and results[c].score is not None]
        if not done:
            raise LayersiftError(f"no training of {key[1]} layers with {key[0]} succeeded; see {recipe.output}/{CELLS}")
        sign = 1 if unit_of(next(iter(done[0][0].metrics))).higher_is_better else -1
        chosen[key] = max(done, key=lambda pair: sign * (pair[0].score or 0.0))[1]
        reporter.say(f"learning rate for {key[1]} layers with {key[0]}: {chosen[key]:g}")
    return chosen


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


def compare(recipe: Recipe, jobs: int = 1, reporter: Reporter | None = None) -> Contest:
    """Score, train and judge; what is finished is not done again.

    Writes, under the recipe's output: grid.json, cells/, scores.json.

    Raises:
        LayersiftError: the data, the model, a setting or the output cannot be used.
    """
    reporter = reporter or Reporter()
    check_jobs(jobs)
    stack = choose_stack(find_stacks(empty_model(recipe.model)), recipe.select.tower)
    sizes = sizes_of(recipe, stack.num_layers)
    methods = recipe.compare.methods or [recipe.train.method]
    seeds = tuple(recipe.seed + i for i in range(recipe.compare.seeds))
    output = open_grid(recipe)
    field = scores_of(recipe, sizes, output, reporter)
    rates = choose_rates(recipe, stack.num_layers, sizes, methods, jobs, field.kind, reporter)
    entries = entries_of(recipe, field, sizes, methods, rates)
    cells = [cell for entry in entries for cell in entry.cells(seeds)]
    results, failures = run_cells(recipe, cells, output / CELLS, jobs, reporter, "training and judging")
    if not results:
        raise LayersiftError(f"no training succeeded; the first one: {next(iter(failures.values()))}")
    return judge(recipe, field, entries, rates, seeds, results, failures)


def scores_of(recipe: Recipe, sizes: Sequence[int], output: Path, reporter: Reporter) -> Field:
    """:func:`score_all`, or what an earlier start of the same comparison found."""
    path = output / "scores.json"
    settings = recipe.compare
    key = {
        "criteria": settings.criteria,
        "sizes": list(sizes),
        "probe_share": settings.probe_share,
        "select": json.loads(json.dumps(asdict(recipe.select))),
    }
    if path.exists() and (kept := read_json(path, "the scores of a comparison"))["of"] == key:
        return _field_of(kept["field"])
    field = score_all(recipe, sizes, reporter)
    write_json(path, {"of": key, "field": asdict(field)})
    return field


def _field_of(values: dict[str, Any]) -> Field:
    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    stack = BlockStack(**{name: tuples(v) for name, v in values["stack"].items()})
    scored = []
    for entry in values["scored"]:
        kept = {name: tuples(v) for name, v in entry["scores"].items()}
        kept["undefined"] = {int(layer): why for layer, why in kept["undefined"].items()}
        sure = entry["stability"]
        sure = None if sure is None else Stability(**{name: tuples(v) for name, v in sure.items()})
        scored.append(Scored(LayerScores(**kept), sure, entry["size"], tuples(entry["converged"])))
    positions = {name: tuples(v) for name, v in values["positions"].items()}
    return Field(
        **values | {"stack": stack, "scored": tuple(scored), "positions": positions, "matrix": tuples(values["matrix"])}
    )


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
