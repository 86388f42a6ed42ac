"""`layersift evaluate`: a trained run on held-back data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layersift.config.recipe import EvaluateSettings

from . import options as o

if TYPE_CHECKING:
    from layersift.data.table import Table

MOST_ACROSS = 12  # classes of a table that fits on a screen
LONGEST_READ = 300  # characters


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output of `layersift train`.")],
    data: Annotated[str, typer.Option(help="Held-back data, in any form that `layersift train` reads.")],
    split: Annotated[str, typer.Option(help="Split of a directory or Hub dataset.")] = EvaluateSettings.split,
    max_samples: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="Samples to judge by, drawn at random. [all]")
    ] = None,
    exact_match: Annotated[
        int,
        typer.Option(min=0, max=10**9, help="For this many prompts, generate answers and compare their final numbers."),
    ] = 0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=10**6, help="Longest generated answer in tokens.")
    ] = EvaluateSettings.max_new_tokens,
    wrong: Annotated[
        int, typer.Option(min=0, max=10**6, help="Of a classification: also show so many rows that it gets wrong.")
    ] = 0,
    device: o.Device = None,
    trust_remote_code: o.TrustRemoteCode = False,
    seed: o.Seed = 0,
    output: o.Output = None,
    config: o.Config = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Evaluate the adapters in RUN. Columns are those of its training."""
    from dataclasses import asdict, replace

    from layersift.data.encode import encode_sample
    from layersift.data.split import overlap_notice
    from layersift.evaluation.load_run import count_rows_read, load_run, run_table
    from layersift.evaluation.metrics import by_class, classes_in, majority_of
    from layersift.evaluation.metrics import evaluate as evaluate_model
    from layersift.evaluation.metrics import exact_match as match_answers
    from layersift.files import write_json
    from layersift.processes import is_main_process, join_processes
    from layersift.provenance import command, versions
    from layersift.records.reading import describe
    from layersift.records.runs import RunRecord

    from .console import Console, next_step

    console = Console(quiet, json)
    record = RunRecord.load(run)
    table = run_table(record, data, split)
    count = min(max_samples or len(table.rows), len(table.rows))
    resolved = {
        "run": str(run),
        "model": record.source.name,
        "layers": record.mask,
        "data": f"{data}, {count} of {len(table.rows)} rows",
        "columns": table.described(),
        "output": str(output or "the screen"),
    }
    if dry_run:
        console.say(o.listed(resolved))
        o.say_how_to_do_it(console)
        console.result(resolved)
        return
    console.say(f"{resolved['columns']}; layers {record.mask}")
    with join_processes():
        _, loaded, encoder = load_run(run, device, trust_remote_code=trust_remote_code)
        encoded = encode_sample(table, encoder, max_samples, seed)
        if encoded.notice:
            console.say(encoded.notice)
        with console.stage("evaluating", len(encoded.examples)) as progress:
            evaluation = evaluate_model(loaded.model, encoder, encoded.examples, loaded.pad_id, progress)
        if exact_match:
            rows = encoded.rows[:exact_match]
            with console.stage("answering", len(rows)) as progress:
                answers = match_answers(loaded.model, encoder, table, rows, loaded.pad_id, max_new_tokens, progress)
            evaluation = replace(evaluation, metrics=evaluation.metrics | answers.metrics)
    seen = count_rows_read(run, table, encoded)
    report = baseline = None
    missed: list[dict[str, Any]] = []
    if encoder.kind == "classification":
        names, predicted = encoder.classes, [int(p) for p in evaluation.predicted]
        truth = [int(e.label) for e in encoded.examples if e.label is not None]
        report = by_class(names, truth, predicted)
        baseline = majority_of(record.data.classes, {"": classes_in(encoded.examples, names)})
        pairs = zip(encoded.rows, truth, predicted, strict=True)
        missed = [_missed(table, row, names[is_], names[taken]) for row, is_, taken in pairs if is_ != taken][:wrong]
    result = {
        "schema_version": 1,
        "run": str(run),
        "trained_digest": record.trained_digest,
        "data": asdict(describe(table, encoded.notice)),
        **evaluation.to_json(),
        "rows_read_in_training": seen,
        "by_class": None if report is None else asdict(report),
        "majority": None if baseline is None else asdict(baseline),
        "wrong": missed,
        "seed": seed,
        "versions": versions(),
        "command": command(),
    }
    if output is not None and is_main_process():
        write_json(output, result, new=True)
    error = evaluation.standard_error
    for place, (name, value) in enumerate(evaluation.metrics.items()):
        spread = f" ± {error:.4f}" if place == 0 and error is not None else ""
        console.say(f"{name.replace('_', ' '):<12} {'undefined' if value is None else f'{value:.4f}'}{spread}")
    console.say(f"{evaluation.samples} samples; ± is the standard error over them")
    if seen:
        console.warn(overlap_notice(seen, evaluation.samples))
    if baseline is not None:
        console.say(str(baseline))
    if report is not None:
        console.say("")
        console.table(report.table())
        console.say("")
        if len(report.names) <= MOST_ACROSS:
            console.table(report.confusion_table())
        else:
            console.say(f"what was taken for what, of {len(report.names)} classes, is in --json and --output")
    for miss in missed:
        console.say(f"{miss['where']}: is {miss['label']!r}, taken for {miss['predicted']!r}: {miss['read']}")
    to_predict = ["layersift", "predict", run, "--data", "FILE", "-o", "predictions.csv"]
    console.say(next_step("predict rows without labels", *to_predict))
    console.result(result)


def _missed(table: Table, row: int, label: str, predicted: str) -> dict[str, Any]:
    """A row that was taken for another class, with what was read of it."""
    columns = table.columns
    read = [table.rows[row][name] for name in (columns.text, columns.text_pair) if name]
    said = " | ".join(" ".join(str(text).split()) for text in read) or str(columns.image)
    return {"where": table.where(row), "label": label, "predicted": predicted, "read": said[:LONGEST_READ]}
