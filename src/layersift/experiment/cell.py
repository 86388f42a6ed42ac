"""One cell of a grid: some layers, trained by a recipe with one seed, and judged. Cells differ in nothing else."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from layersift.config.fields import read_as
from layersift.config.recipe import Recipe
from layersift.config.train import TrainSettings
from layersift.config.variants import SELECTED
from layersift.data.encode import Encoder, encode_sample
from layersift.data.examples import digest_of
from layersift.errors import LayersiftError
from layersift.evaluation.load_run import judge_of, load_run
from layersift.evaluation.metrics import Evaluation, evaluate, exact_match
from layersift.experiment.prepare import Prepared, prepare, read_retention, split_tables
from layersift.models.load import LoadedModel
from layersift.models.stacks import find_stack
from layersift.processes import by_main_process, place_of
from layersift.progress import Reporter
from layersift.provenance import versions
from layersift.records.runs import Cell, Environment, Judged, Look, Result, RunRecord
from layersift.records.selection import Selection, make_selection
from layersift.training.output import RunOutput
from layersift.training.watch import Watch, never_predicted_notice, read_looks

CELLS, VARIANTS, SELECTION = "cells", "variants", "selection.json"  # of an output
RETENTION_SAMPLES = 200
LOOKED_AT = 400  # held-back rows, at each look at a training
COSTS = (
    "trainable_parameters",
    "train_seconds",
    "peak_memory_bytes",
    "adapter_bytes",
    "train_loss",
    "strategy_followed",
)  # of a run's record


@dataclass(frozen=True)
class Job:
    """A cell to be trained and judged, and under which name its run directory is kept, if it is."""

    cell: Cell
    keep: str | None = None
    watched: bool = False  # whether held-back rows, where there are some, are looked at while it is trained


class Runner(Protocol):
    """What trains and judges the cells of a grid, here or elsewhere."""

    def run(
        self, recipe: Recipe, jobs: Sequence[Job], output: Path, reporter: Reporter
    ) -> Generator[tuple[Job, str | None], None, None]:
        """Carry out cells, in any order.

        Yields:
            Each job, as soon as its result lies under ``output``, with None; or with one line on why it failed.

        Raises:
            LayersiftError: no cell can be carried out.
        """
        ...


Jobs = int | Runner  # so many trainings at a time in processes of this machine, or what carries them out


@dataclass(frozen=True)
class Rows:
    """A recipe's rows, encoded once for all cells of a process."""

    test: Prepared
    validation: Prepared | None

    def held_back(self, job: Job) -> Prepared | None:
        """The rows to look at while a cell is trained."""
        return self.validation if job.watched and job.cell.judged == "test" else None

    def prepared(self, judged: Judged) -> Prepared:
        """The rows that a cell is trained and judged on."""
        return self.test if judged == "test" or self.validation is None else self.validation


@functools.lru_cache(maxsize=1)
def rows_of(recipe_json: str) -> Rows:
    """The rows of a recipe, given as JSON."""
    recipe = read_as(Recipe, json.loads(recipe_json), "the recipe")
    tables, tuning = split_tables(recipe)
    quiet = Reporter()
    return Rows(prepare(recipe, tables, quiet), prepare(recipe, tuning, quiet) if tuning else None)


def result_path(output: Path, cell: Cell, shared: TrainSettings) -> Path:
    """Where a finished cell's result lies; see :meth:`layersift.records.runs.Cell.file_name`."""
    return output / CELLS / f"{cell.file_name(shared)}.json"


def error_path(output: Path, cell: Cell, shared: TrainSettings) -> Path:
    """Where is written what Python says of a cell that failed unexpectedly."""
    return output / CELLS / f"{cell.file_name(shared)}.error.txt"


def run_cell(recipe: Recipe, job: Job, output: Path, reporter: Reporter) -> Result:
    """Train and judge a cell, and write its result. A training that was interrupted goes on from its checkpoint.

    Raises:
        LayersiftError: the model, the data or a setting cannot be used.
    """
    cell = job.cell
    rows = rows_of(json.dumps(recipe.to_json()))
    prepared = rows.prepared(cell.judged)
    name = cell.file_name(recipe.train)
    directory = output / VARIANTS / job.keep if job.keep else output / CELLS / f"{name}.run"
    costs: dict[str, Any] = {}
    looks: tuple[Look, ...] = ()
    notices: tuple[str, ...] | None = None  # of the training; None where there is none
    if not cell.mask:
        loaded = prepared.task.load(cell.seed)
    else:
        if not by_main_process(directory.exists):
            _train(recipe, job, rows, directory, output, reporter)
        require_own(directory, cell)
        record, loaded, _ = load_run(directory, trust_remote_code=recipe.model.trust_remote_code)
        costs = {name: getattr(record, name) for name in COSTS}
        looks, notices = read_looks(directory), record.notices
    evaluation = judge_on_tests(recipe, job.keep or str(cell), prepared, loaded, reporter)
    result = Result(
        cell=cell,
        metrics=evaluation.metrics,
        samples=evaluation.samples,
        outcomes=evaluation.outcomes,
        weights=evaluation.weights,
        standard_error=evaluation.standard_error,
        retention_loss=_retention(recipe, loaded) if cell.judged == "test" else None,
        looks=looks,
        made=Environment(versions(), place_of(str(loaded.model.device)), torch.get_num_threads()),
        notices=_notices(notices, evaluation),
        **costs,
    )

    def finish() -> None:
        result.save(result_path(output, cell, recipe.train))
        if not job.keep:
            shutil.rmtree(directory, ignore_errors=True)

    by_main_process(finish)
    return result


def require_own(directory: Path, cell: Cell) -> None:
    """Refuse a run directory that an earlier start left for other layers or at another rate.

    Raises:
        LayersiftError: that.
    """
    record = RunRecord.load(directory)
    rate, wanted = record.settings.rate, cell.train.named_rate
    if record.mask != cell.mask or (wanted is not None and rate != wanted):
        raise LayersiftError(
            f"{directory} holds layers {record.mask} at learning rate {rate:g}, not {cell.mask} at "
            f"{'its default' if wanted is None else f'{wanted:g}'}; give another --output, or remove that directory"
        )


def _notices(of_training: tuple[str, ...] | None, judged: Evaluation) -> tuple[str, ...]:
    """What should be known of a training, by itself and by the rows that it is judged on."""
    if of_training is None or not judged.never_predicted:
        return of_training or ()
    return (*of_training, never_predicted_notice(judged.never_predicted, "test"))


def _train(recipe: Recipe, job: Job, rows: Rows, directory: Path, output: Path, reporter: Reporter) -> None:
    """On its own, so that its model is gone when the next one is loaded."""
    from layersift.training.fit import TrainingData, train  # Transformers' Trainer takes a second to import

    cell, prepared, held_back = job.cell, rows.prepared(job.cell.judged), rows.held_back(job)
    examples = prepared.train.examples
    settings = cell.train
    base = prepared.task.load(cell.seed)
    place, most_tokens = RunOutput(directory), settings.batch_size * max(map(len, examples))
    with reporter.stage(f"training {job.keep or cell}", settings.steps(len(examples)), "steps") as progress:
        train(
            base,
            TrainingData(prepared.encoder, examples, prepared.data, read=prepared.read),
            _selection(recipe, job, prepared, base, output),
            settings,
            replace(place, resume=by_main_process(place.partial.exists)),
            seed=cell.seed,
            progress=progress,
            watch=None if held_back is None else _watch_of(held_back, base.pad_id, most_tokens),
        )


def _watch_of(held_back: Prepared, pad_id: int, most_tokens: int) -> Watch:
    """Looks at some of the held-back rows, evenly from all."""
    (encoded,) = held_back.test.values()
    some = encoded.examples[:: math.ceil(len(encoded.examples) / LOOKED_AT)]
    return Watch(judge_of(held_back.encoder, some, pad_id, most_tokens), rows=digest_of(some))


def _selection(recipe: Recipe, job: Job, prepared: Prepared, base: LoadedModel, output: Path) -> Selection:
    """The cell's layers, with the scores that the experiment has found, if it has."""
    rule = f"variant: {job.keep}" if job.keep else "a cell of a grid"
    if job.keep and (output / SELECTION).exists():
        selection = Selection.load(output / SELECTION)
        if job.keep == SELECTED:
            return selection
        return replace(selection, selected_layers=job.cell.layers, rule=rule, compat=None, modules=None)
    stack = find_stack(base.model, recipe.select.tower)
    return make_selection(base.name, base.revision, stack, job.cell.layers, prepared.data, rule)


def judge_on_tests(
    recipe: Recipe, name: str, prepared: Prepared, loaded: LoadedModel, reporter: Reporter
) -> Evaluation:
    """All test sources; the metrics of several carry the name of theirs, the outcomes are those of the first."""
    by_source = {source: _judge_on(source, recipe, name, prepared, loaded, reporter) for source in prepared.test}
    metrics: dict[str, float | None] = {}
    for source, evaluation in by_source.items():
        wanted = recipe.evaluate.metrics or evaluation.metrics
        metrics |= {f"{metric} {source}".strip(): evaluation.metrics[metric] for metric in wanted}
    return replace(next(iter(by_source.values())), metrics=metrics)


def _judge_on(
    source: str, recipe: Recipe, name: str, prepared: Prepared, loaded: LoadedModel, reporter: Reporter
) -> Evaluation:
    encoder, encoded, what = prepared.encoder, prepared.test[source], f"{name} {source}".strip()
    with reporter.stage(f"evaluating {what}", len(encoded.examples)) as progress:
        evaluation = evaluate(loaded.model, encoder, encoded.examples, loaded.pad_id, progress)
    rows = encoded.rows[: recipe.evaluate.exact_match]
    if not rows:
        return evaluation
    with reporter.stage(f"answering {what}", len(rows)) as progress:
        longest, table = recipe.evaluate.max_new_tokens, prepared.tables.test[source]
        answers = exact_match(loaded.model, encoder, table, rows, loaded.pad_id, longest, progress)
    return replace(evaluation, metrics=evaluation.metrics | answers.metrics)


def _retention(recipe: Recipe, loaded: LoadedModel) -> float | None:
    """Loss a token on the recipe's text of another kind; None where there is none, or the model does not write."""
    if recipe.compare.retention is None or not loaded.model.can_generate() or loaded.seq2seq:
        return None
    table = read_retention(recipe.compare.retention)
    encoder = Encoder(loaded.tokenizer, "text", max_length=recipe.data.max_length)
    encoded = encode_sample(table, encoder, RETENTION_SAMPLES, recipe.seed)
    return evaluate(loaded.model, encoder, encoded.examples, loaded.pad_id).metrics["loss"]
