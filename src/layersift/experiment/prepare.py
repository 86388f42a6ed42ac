"""The rows of a recipe: read, split, and encoded as every training of the experiment sees them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from layersift.adapt.inspection import trained_by_layer
from layersift.adapt.methods import find_method
from layersift.config.defaults import fill_epochs
from layersift.config.inputs import TaskKind
from layersift.config.recipe import Recipe
from layersift.config.train import FULL
from layersift.data.columns import TEXTS, UnknownColumnsError
from layersift.data.encode import Encoded, Encoder
from layersift.data.overlap import count_read, digests_of, overlap_notice
from layersift.data.split import split_off
from layersift.data.table import Table, read_data, read_table, require_rows
from layersift.errors import DataError, LayersiftError, listed, unknown_name
from layersift.evaluation.classes import Majority, classes_in, majority_of
from layersift.evaluation.metrics import METRICS
from layersift.models.load import require_writer
from layersift.progress import Reporter
from layersift.records.data import DataRecord, describe
from layersift.score.registry import find_criterion
from layersift.select.sample import criterion_of
from layersift.step.prefix_cache import require_cache_place
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
    require_cache_place(recipe.train.prefix_cache)
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
