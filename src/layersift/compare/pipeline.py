"""Run a recipe: select, train every arm, evaluate, and end in one table. What is finished is not done again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layersift.adapt.inspection import layer_costs
from layersift.adapt.ranks import with_ranks
from layersift.compare.recipe import Recipe
from layersift.compare.report import ArmResult, caption, draw_importance, markdown, table_rows
from layersift.errors import LayersiftError, unknown_name
from layersift.evaluate.load_run import load_run
from layersift.evaluate.metrics import METRICS, Evaluation, evaluate, exact_match
from layersift.files import differences, read_json, write_json, write_text
from layersift.load.blocks import choose_stack, find_stacks
from layersift.load.data import Table, TaskKind
from layersift.load.encode import Encoded, Encoder
from layersift.load.models import LoadedModel, empty_model, load_config, load_model, load_readers
from layersift.load.task import encode_sample, split_off
from layersift.progress import Reporter
from layersift.provenance import command, machine, versions
from layersift.select.baselines import arm_name, baseline, check_arm
from layersift.select.choose import select
from layersift.select.sample import describe, sample_table
from layersift.select.selection import Selection
from layersift.select.settings import how_many
from layersift.train.fit import partial_directory, train
from layersift.train.run_record import RunRecord

HELD_BACK = 0.2


@dataclass(frozen=True)
class Tables:
    """The rows to train on and the rows to judge by."""

    train: Table
    test: dict[str, Table]  # by name; a single one has none


@dataclass(frozen=True)
class Prepared:
    """The rows of a recipe as every arm sees them."""

    tables: Tables
    encoder: Encoder
    train: Encoded
    test: dict[str, Encoded]


def read_tables(recipe: Recipe) -> Tables:
    """Training and test rows; without test data a fifth of the training rows is held back by the seed.

    Raises:
        DataError: either cannot be read.
    """
    whole = recipe.data.read()
    if recipe.evaluate.data is None:
        train_rows, held_back = split_off(whole, HELD_BACK, recipe.seed)
        return Tables(train_rows, {"": held_back})
    tests = {
        name: replace(recipe.data, data=source, split=split).read()
        for name, (source, split) in recipe.evaluate.sources().items()
    }
    return Tables(whole, tests)


def _check_metrics(recipe: Recipe, kind: TaskKind) -> None:
    known = (*METRICS[kind], *(["exact_match"] if recipe.evaluate.exact_match else []))
    for metric in recipe.evaluate.metrics or ():
        if metric not in known:
            raise unknown_name(f"metric of a {kind} task", metric, known)


def prepare(recipe: Recipe, reporter: Reporter) -> Prepared:
    """Read and encode all rows, before anything is written.

    Raises:
        DataError: rows cannot be read or encoded; test labels that the training rows lack.
        ModelError: the tokenizer cannot be loaded.
    """
    return prepare_tables(recipe, read_tables(recipe), reporter)


def prepare_tables(recipe: Recipe, tables: Tables, reporter: Reporter) -> Prepared:
    """Encode the rows of tables that have been read.

    Raises:
        DataError, ModelError: see :func:`prepare`.
    """
    _check_metrics(recipe, tables.train.kind)
    reporter.say(f"data: {tables.train.described()}")
    images = bool(tables.train.columns.image)
    tokenizer, processor = load_readers(recipe.model, tables.train.kind, images)
    seq2seq = bool(getattr(load_config(recipe.model), "is_encoder_decoder", False))
    encoder = recipe.data.encoder(tables.train, tokenizer, processor, seq2seq)
    train_rows = encode_sample(tables.train, encoder, recipe.train.max_samples, recipe.seed)
    test_rows = {
        name: encode_sample(table, encoder, recipe.evaluate.max_samples, recipe.seed)
        for name, table in tables.test.items()
    }
    for name, encoded in {"training": train_rows, **{f"test {n}".strip(): e for n, e in test_rows.items()}}.items():
        if notice := encoded.notice(encoder.limit()):
            reporter.say(f"{name}: {notice}")
    return Prepared(tables, encoder, train_rows, test_rows)


def open_output(recipe: Recipe) -> Path:
    """The output directory: new, or of an earlier run of the same recipe, which is then carried on.

    Raises:
        LayersiftError: it exists and belongs to something else.
    """
    output, plan = Path(recipe.output), json.loads(json.dumps(recipe.to_json()))
    if not output.exists():
        write_json(output / "recipe.json", plan)
    elif not (output / "recipe.json").is_file():
        raise LayersiftError(f"{output} exists and holds no run of a recipe; give another --output")
    elif changed := differences(read_json(output / "recipe.json", "the recipe of an earlier run"), plan):
        raise LayersiftError(
            f"{output} holds a run of another recipe (other {', '.join(changed)}); give another --output, or remove it"
        )
    return output


def run(recipe: Recipe, reporter: Reporter | None = None) -> list[ArmResult]:
    """Carry out a recipe.

    Writes, under its output: selection.json, arms/, results/, table.md, results.json, importance.png.

    Raises:
        LayersiftError: the data, the model, a setting or the output cannot be used.
    """
    reporter = reporter or Reporter()
    stack = choose_stack(find_stacks(empty_model(recipe.model)), recipe.select.tower)
    how_many(recipe.select, stack.num_layers)
    for arm in recipe.arms:
        check_arm(arm, stack.num_layers)
    prepared = prepare(recipe, reporter)
    output = open_output(recipe)
    selection = _selection(recipe, prepared, output / "selection.json", reporter)
    reporter.say(f"layers: {selection.mask} ({selection.rule})")
    draw_importance(selection, output / "importance.png")
    results = [_arm(recipe, arm, prepared, selection, output, reporter) for arm in recipe.arms]
    if results:
        write_text(output / "table.md", f"{markdown(table_rows(results))}\n{caption(results)}\n")
    made = {"recipe": recipe.to_json(), "command": command(), "versions": versions(), "machine": machine()}
    write_json(output / "results.json", {"schema_version": 1, **made, "results": [r.to_json() for r in results]})
    return results


def _load(recipe: Recipe, encoder: Encoder) -> LoadedModel:
    return load_model(
        recipe.model, encoder.kind, max(1, len(encoder.classes)), recipe.seed, encoder.processor is not None
    )


def _selection(recipe: Recipe, prepared: Prepared, path: Path, reporter: Reporter) -> Selection:
    if path.exists():
        return Selection.load(path)
    sample = sample_table(prepared.tables.train, prepared.encoder, recipe.select)
    loaded, costs = _load(recipe, prepared.encoder), None
    config = recipe.train.adapter(prepared.encoder.kind, 1, prepared.encoder.seq2seq)
    if recipe.select.budget_params is not None:
        stack = choose_stack(find_stacks(loaded.model), recipe.select.tower)
        if config is not None:
            config = with_ranks(loaded.model, stack, range(stack.num_layers), config, recipe.train.ranks)
        costs = layer_costs(loaded.model, stack, config)
    with reporter.stage("reading representations", len(sample.examples)) as progress:
        selection = select(
            loaded.model,
            sample,
            recipe.select,
            padding=loaded.pad_id,
            name=recipe.model.name,
            revision=loaded.revision,
            layer_costs=costs or (),
            adapter=config,
            progress=progress,
        )
    selection.save(path)
    return selection


def _arm(
    recipe: Recipe, arm: str, prepared: Prepared, selection: Selection, output: Path, reporter: Reporter
) -> ArmResult:
    name = arm_name(arm)
    path = output / "results" / f"{name}.json"
    if path.exists():
        values = read_json(path, "the result of an arm")
        return ArmResult(**{k: v for k, v in values.items() if k != "outcomes"})
    record = None
    if arm == "untouched":
        loaded = _load(recipe, prepared.encoder)
    else:
        directory = output / "arms" / name
        if not directory.exists():
            _train(recipe, arm, prepared, selection, directory, reporter)
        record, loaded, _ = load_run(directory)
    found = evaluate_all(recipe, arm, prepared, loaded, reporter)
    result = ArmResult(
        arm=name,
        mask=record.mask if record else "",
        samples=found.samples,
        metrics=found.metrics,
        standard_error=found.standard_error,
        **_costs(record),
    )
    write_json(path, result.to_json() | {"outcomes": list(found.outcomes)})
    return result


def _costs(record: RunRecord | None) -> dict[str, Any]:
    names = ("trainable_parameters", "train_seconds", "peak_memory_bytes", "adapter_bytes")
    return {name: getattr(record, name) for name in names} if record else {}


def _train(
    recipe: Recipe, arm: str, prepared: Prepared, selection: Selection, directory: Path, reporter: Reporter
) -> None:
    chosen = selection if arm == "selected" else baseline(arm, selection, recipe.seed)
    examples = prepared.train.examples
    with reporter.stage(f"training {arm}", recipe.train.steps(len(examples)), "steps") as progress:
        train(
            _load(recipe, prepared.encoder),
            recipe.model,
            prepared.encoder,
            examples,
            describe(prepared.tables.train),
            chosen,
            recipe.train,
            directory,
            seed=recipe.seed,
            resume=partial_directory(directory).exists(),
            progress=progress,
        )


def evaluate_all(recipe: Recipe, arm: str, prepared: Prepared, loaded: LoadedModel, reporter: Reporter) -> Evaluation:
    """All test sources; the metrics of several carry the name of theirs, the outcomes are those of the first."""
    found = {name: _evaluate_on(name, recipe, arm, prepared, loaded, reporter) for name in prepared.test}
    metrics: dict[str, float | None] = {}
    for name, evaluation in found.items():
        wanted = recipe.evaluate.metrics or evaluation.metrics
        metrics |= {f"{metric} {name}".strip(): evaluation.metrics[metric] for metric in wanted}
    first = next(iter(found.values()))
    return replace(first, metrics=metrics)


def _evaluate_on(
    name: str, recipe: Recipe, arm: str, prepared: Prepared, loaded: LoadedModel, reporter: Reporter
) -> Evaluation:
    encoder, encoded, what = prepared.encoder, prepared.test[name], f"{arm} {name}".strip()
    with reporter.stage(f"evaluating {what}", len(encoded.examples)) as progress:
        found = evaluate(loaded.model, encoder, encoded.examples, loaded.pad_id, progress)
    rows = encoded.rows[: recipe.evaluate.exact_match]
    if not rows:
        return found
    with reporter.stage(f"answering {what}", len(rows)) as progress:
        longest, table = recipe.evaluate.max_new_tokens, prepared.tables.test[name]
        answers = exact_match(loaded.model, encoder, table, rows, loaded.pad_id, longest, progress)
    return replace(found, metrics=found.metrics | answers.metrics)
