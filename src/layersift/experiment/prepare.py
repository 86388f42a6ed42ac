"""The rows of a recipe, encoded as every training of the experiment sees them; and every criterion's scores of them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

from layersift.adapt.methods import find_method
from layersift.adapt.targets import trained_by_layer
from layersift.config.defaults import fill_epochs
from layersift.config.fields import json_values, read_as
from layersift.config.quantities import mask_of
from layersift.config.recipe import Recipe, TaskKind
from layersift.config.select import rule_digest
from layersift.config.train import FULL
from layersift.data.columns import TEXTS, UnknownColumnsError
from layersift.data.encode import Encoded, Encoder
from layersift.data.split import count_read, digests_of, overlap_notice, split_off
from layersift.data.table import Table, read_data, read_table, require_rows
from layersift.errors import DataError, LayersiftError, SelectionError, listed, unknown_name
from layersift.evaluation.metrics import METRICS, Majority, classes_in, majority_of
from layersift.files import read_json, write_json
from layersift.measures import MEASURES
from layersift.models.load import require_writer
from layersift.models.stacks import BlockStack, find_stack
from layersift.progress import Reporter
from layersift.records.reading import DataRecord, describe
from layersift.records.selection import LayerScores
from layersift.represent.positions import POSITIONS
from layersift.score.context import ScoringContext
from layersift.score.criterion import Criterion, announce_criteria, score_layers
from layersift.score.registry import find_criterion
from layersift.score.stability import Stability, measure_convergence, measure_stability
from layersift.select.sample import criterion_of, sample_table, scoring_contexts
from layersift.step.activation_cache import require_cache_place
from layersift.task import Task

HELD_BACK = 0.2  # of the training rows, where there are no others to judge by


@dataclass(frozen=True)
class Tables:
    """The rows to train on and the rows to judge by."""

    train: Table
    test: dict[str, Table]  # by name; a single one has none


@dataclass(frozen=True)
class Prepared:
    """The same rows as every training sees them."""

    tables: Tables
    task: Task  # of the training rows
    train: Encoded
    test: dict[str, Encoded]

    @property
    def encoder(self) -> Encoder:
        """How rows become examples."""
        return self.task.encoder

    @property
    def data(self) -> DataRecord:
        """The record of the training rows."""
        return describe(self.tables.train, self.train.notice)

    @property
    def majority(self) -> Majority | None:
        """What always giving the most common class scores; None where the task has none."""
        if self.encoder.kind != "classification":
            return None
        names = self.encoder.classes
        counts = Counter(classes_in(self.train.examples, names))
        tested = {name: classes_in(rows.examples, names) for name, rows in self.test.items()}
        return majority_of({name: counts[name] for name in names}, tested)

    @cached_property
    def notices(self) -> tuple[str, ...]:
        """What was cut or left out of the rows, and which test rows are trained on."""
        tests = {f"test {name}".strip(): rows for name, rows in self.test.items()}
        said = [f"{name}: {rows.notice}" for name, rows in {"training": self.train, **tests}.items() if rows.notice]
        for (name, rows), table in zip(tests.items(), self.tables.test.values(), strict=True):
            seen = count_read(digests_of(table, rows), self.read)
            said += [f"{name}: {overlap_notice(seen, len(rows.rows))}"] * bool(seen)
        return tuple(said)

    @cached_property
    def read(self) -> frozenset[str]:
        """Digests of what is read of the training rows."""
        return frozenset(chain.from_iterable(digests_of(self.tables.train, self.train)))


def require_known(recipe: Recipe) -> None:
    """Refuse names that no stage knows: of the criterion, the position, the method, and those of a comparison.

    Raises:
        LayersiftError: one of those; the message lists what is known.
    """
    criterion_of(recipe.select)
    for name in recipe.compare.criteria:
        find_criterion(name)
    for method in (recipe.train.method, *recipe.compare.methods):
        if method != FULL:
            find_method(method)


def checked(recipe: Recipe, reporter: Reporter) -> tuple[Recipe, int, Prepared]:
    """Everything that can be refused before a model is loaded and anything is written.

    Returns:
        The recipe with its epochs named, which by default depend on the task and its rows; the number of layers; and
        the rows that every training is going to see.

    Raises:
        LayersiftError: a name, a setting, the data, the tokenizer or a method's options cannot be used.
    """
    require_known(recipe)
    if recipe.select.modules:
        raise LayersiftError("select.modules: variants of recipes are whole layers; use `layersift select` and `train`")
    tables, _ = split_tables(recipe)
    task = task_of(recipe, tables)
    require_writer(task.empty, tables.train.kind, recipe.model.name)
    require_cache_place(recipe.train.activation_cache)
    layers = range(task.stack.num_layers)
    for method in (recipe.train.method, *recipe.compare.methods):
        settings = replace(recipe.train, method=method)
        adapter = task.with_ranks(task.adapter(settings), settings)
        trained_by_layer(task.empty, task.stack, layers, adapter)
    prepared = prepare(recipe, tables, reporter, task)
    settings = fill_epochs(recipe.train, prepared.encoder.kind, len(prepared.train.examples))
    return replace(recipe, train=settings), len(layers), prepared


def task_of(recipe: Recipe, tables: Tables) -> Task:
    """The recipe's model with its training rows."""
    return Task.open(recipe.model, recipe.data, tower=recipe.select.tower, table=tables.train)


def read_retention(source: str) -> Table:
    """The text of another kind on which a comparison takes the loss before and after.

    Raises:
        DataError: it cannot be read, has no column of text, or fewer than 8 rows.
    """
    try:
        table = read_table(source, kind="text")
    except UnknownColumnsError:
        raise DataError(
            f"compare.retention: {source} has no column that is called like a text ({listed(TEXTS, 80)}); rename one"
        ) from None
    require_rows(table)
    return table


def read_tables(recipe: Recipe) -> Tables:
    """Training and test rows; without test data a fifth of the training rows is held back by the seed.

    Raises:
        DataError: either cannot be read.
    """
    whole = read_data(recipe.data)
    if recipe.evaluate.data is None:
        train_rows, held_back = split_off(whole, HELD_BACK, recipe.seed)
        return Tables(train_rows, {"": held_back})
    tests = {
        name: read_data(replace(recipe.data, data=source, split=split))
        for name, (source, split) in recipe.evaluate.sources().items()
    }
    return Tables(whole, tests)


def split_tables(recipe: Recipe) -> tuple[Tables, Tables | None]:
    """The rows to train on and to test on, and, where learning rates are chosen, the same training rows with a part
    held back to choose by. Test rows take no part in that choice.

    Raises:
        DataError: the data cannot be read.
    """
    tables = read_tables(recipe)
    if len(recipe.compare.learning_rates) < 2:
        return tables, None
    rest, held_back = split_off(tables.train, HELD_BACK, recipe.seed + 1)
    if (label := tables.train.columns.label) is not None and tables.train.kind == "classification":
        # A class that would otherwise be held back as a whole could not be learned.
        known = {row[label] for row in rest.rows}
        lone = [i for i, row in enumerate(held_back.rows) if row[label] not in known]
        rest = rest.followed_by(held_back.take(lone))
        held_back = held_back.take([i for i, row in enumerate(held_back.rows) if row[label] in known])
    return replace(tables, train=rest), Tables(rest, {"": held_back})


def _require_metrics(recipe: Recipe, kind: TaskKind) -> None:
    if recipe.evaluate.exact_match and kind != "instruction":
        raise LayersiftError(f"evaluate.exact_match is for tasks with written answers; this one is of {kind}")
    known = (*METRICS[kind], *(["exact_match"] if recipe.evaluate.exact_match else []))
    for metric in recipe.evaluate.metrics or ():
        if metric not in known:
            raise unknown_name(f"metric of a {kind} task", metric, known)


def prepare(recipe: Recipe, tables: Tables, reporter: Reporter, task: Task | None = None) -> Prepared:
    """Encode the rows of tables that have been read.

    Args:
        task: :func:`task_of` them, where there is one already.

    Raises:
        DataError: rows cannot be encoded; test labels that the training rows lack.
        ModelError: the tokenizer cannot be loaded.
    """
    _require_metrics(recipe, tables.train.kind)
    reporter.say(f"data: {tables.train.described()}")
    task = task or task_of(recipe, tables)
    train_rows = task.encode(recipe.train.max_samples, recipe.seed)
    most = recipe.evaluate.max_samples
    test_rows = {name: task.encode(most, recipe.seed, table) for name, table in tables.test.items()}
    prepared = Prepared(tables, task, train_rows, test_rows)
    for notice in prepared.notices:
        reporter.say(notice)
    return prepared


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
class Scoring:
    """Every criterion's scores on one model and sample, and how they come together."""

    stack: BlockStack
    kind: TaskKind
    scored: tuple[Scored, ...]
    positions: dict[str, tuple[int, ...]]  # the selection by the first criterion that reads tokens, at each position
    matrix: tuple[tuple[float | None, ...], ...]  # CKA of every R_i with every R_j
    left_out: dict[str, str]  # criteria that have no scores here, and why
    data: DataRecord
    samples: int = 0


def sizes_of(recipe: Recipe, num_layers: int) -> list[int]:
    """The numbers of layers to compare at; half of them where the recipe names none.

    Raises:
        SelectionError: more layers than there are.
    """
    sizes = recipe.compare.sizes or [max(1, num_layers // 2)]
    if max(sizes) >= num_layers:
        raise SelectionError(f"compare.sizes {sizes}: there are {num_layers} layers; fewer can be chosen among them")
    return sizes


def scoring_of(recipe: Recipe, prepared: Prepared, sizes: Sequence[int], output: Path, reporter: Reporter) -> Scoring:
    """:func:`score_all`, or what an earlier start of the same comparison found."""
    path = output / "scores.json"
    settings = recipe.compare
    key = {
        "criteria": settings.criteria,
        "rules": {name: digest for name in settings.criteria if (digest := rule_digest(name)) is not None},
        "seed": recipe.seed,
        "sizes": list(sizes),
        "probe_share": settings.probe_share,
        "select": json.loads(json.dumps(asdict(recipe.select))),
    }
    if path.exists() and (kept := read_json(path, "the scores of a comparison")).get("of") == key:
        return read_as(Scoring, kept["scoring"], str(path))
    scoring = score_all(recipe, prepared, sizes, reporter)
    write_json(path, {"of": key, "scoring": json_values(scoring)})
    return scoring


def score_all(recipe: Recipe, prepared: Prepared, sizes: Sequence[int], reporter: Reporter) -> Scoring:
    """Every criterion's scores for every size, from one forward and one backward pass over one sample.

    Raises:
        LayersiftError: the data or the model cannot be used.
    """
    encoder = prepared.encoder
    loaded = prepared.task.load(recipe.seed)
    stack = find_stack(loaded.model, recipe.select.tower)
    if stack.joined:
        raise SelectionError("compare knows one stack of blocks; name one tower")
    steps = recipe.train.steps(len(prepared.train.examples))
    settings = replace(
        recipe.select,
        compat=None,  # the criteria choose, not the published scripts
        probe_steps=max(1, round(recipe.compare.probe_share * steps)),
    )
    sample = sample_table(prepared.tables.train, encoder, settings)
    adapter = prepared.task.adapter(recipe.train)
    with reporter.stage("reading the sample", len(sample.examples)) as progress:
        (context,) = scoring_contexts(loaded, stack, sample, settings, adapter=adapter, progress=progress)
        criteria = [find_criterion(name) for name in recipe.compare.criteria]
        announce_criteria([*criteria, *_at_all_positions(context)], context)
        scored, left_out = _score(criteria, context, sizes, reporter)
    first = next((c for c in criteria if c.at is not None and c.name.partition("@")[0] in ("cka", "cka-robust")), None)
    by_position = _at_all_positions(context, first or find_criterion("cka"))
    chosen = {c.position or "": score_layers(c, context).top(sizes[0]) for c in by_position}
    return Scoring(
        stack, encoder.kind, tuple(scored), chosen, _matrix(context), left_out, sample.data, len(sample.examples)
    )


def _at_all_positions(context: ScoringContext, criterion: Criterion | None = None) -> list[Criterion]:
    """The criterion at every position that the sample's task has."""
    at = (criterion or find_criterion("cka")).at
    responses = all(e.response is not None for e in context.examples)
    names = [name for name in POSITIONS if responses or name != "response-mean"]
    return [at(name) for name in names] if at is not None else []


def _score(
    criteria: list[Criterion], context: ScoringContext, sizes: Sequence[int], reporter: Reporter
) -> tuple[list[Scored], dict[str, str]]:
    """Scores, and why those criteria are left out that have none here.

    Raises:
        SelectionError: not one criterion has.
    """
    scorings: list[Scored] = []
    left_out: dict[str, str] = {}
    for criterion in criteria:
        scored, why = _score_one(criterion, context, sizes, reporter)
        scorings += scored
        if why is not None:
            left_out[criterion.name] = why
            reporter.say(f"left out: {criterion.name}: {why}")
    if not scorings:
        raise SelectionError(f"not one criterion has scores here; the first: {next(iter(left_out.values()))}")
    return scorings, left_out


def _score_one(
    criterion: Criterion, context: ScoringContext, sizes: Sequence[int], reporter: Reporter
) -> tuple[list[Scored], str | None]:
    """A criterion's scores for every size; or none, and why."""
    scorings: list[Scored] = []
    try:
        for size in sizes:
            started = time.perf_counter()
            if scorings and criterion.needs != "training":
                scores = scorings[0].scores
            else:
                scores = score_layers(criterion, replace(context, count=size))
            if not scores.ranking:
                return [], f"no layer has a score ({next(iter(scores.undefined.values()))})"
            sure, converged = measure_stability(criterion, context, size), measure_convergence(criterion, context, size)
            scorings.append(Scored(scores, sure, size, converged))
            mask = mask_of(scorings[-1].layers, context.num_layers)
            reporter.say(f"{criterion.name}: {mask} ({time.perf_counter() - started:.1f} s)")
    except LayersiftError as error:
        return [], str(error)
    return scorings, None


def _matrix(context: ScoringContext) -> tuple[tuple[float | None, ...], ...]:
    """Debiased CKA of every R_i with every R_j at the default position; None where one is constant."""
    measure = MEASURES["cka"]
    forms = context.prepared(measure).forms
    return tuple(
        tuple(None if a is None or b is None else round(measure.compare(a, b), 6) for b in forms) for a in forms
    )


def rank_correlation(a: LayerScores, b: LayerScores) -> float | None:
    """Spearman's, over the layers that both score, each in its direction; None where one of them is constant there."""
    pairs = [
        (x * a.sign, y * b.sign)
        for x, y in zip(a.importance, b.importance, strict=True)
        if x is not None and y is not None
    ]
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    from scipy import stats  # takes a second to import

    return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Share of the layers that two selections of equal size have in common."""
    return len(set(a) & set(b)) / max(len(a), 1)


def between_criteria(scoring: Scoring, size: int) -> list[dict[str, object]]:
    """Every pair of criteria with their rank correlation and their overlap."""
    scored = [s for s in scoring.scored if s.size == size]
    return [_pair(a, b) for a in scored for b in scored]


def _pair(a: Scored, b: Scored) -> dict[str, object]:
    return {
        "a": a.scores.criterion,
        "b": b.scores.criterion,
        "correlation": rank_correlation(a.scores, b.scores),
        "overlap": overlap(a.layers, b.layers),
    }


def between_positions(positions: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """A table of how much the selections at different token positions have in common."""
    rows = [["position", *positions]]
    for name, layers in positions.items():
        rows.append([name, *(f"{overlap(layers, other):.0%}" for other in positions.values())])
    return rows
