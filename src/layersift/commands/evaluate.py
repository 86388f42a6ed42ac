"""`layersift evaluate`: a trained run on held-back data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output of `layersift train`.")],
    data: o.Data,
    split: o.Split = "test",
    max_samples: Annotated[int | None, typer.Option(min=1, help="Samples to judge by, drawn at random. [all]")] = None,
    exact_match: Annotated[
        int, typer.Option(min=0, help="For this many prompts, generate answers and compare their final numbers.")
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest generated answer in tokens.")] = 256,
    device: o.Device = None,
    seed: o.Seed = 0,
    output: o.Output = None,
    config: o.Config = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Evaluate the adapters in RUN. Columns are those of its training."""
    from dataclasses import replace

    from layersift.evaluate.load_run import load_run, run_table
    from layersift.evaluate.metrics import evaluate as evaluate_model
    from layersift.evaluate.metrics import exact_match as match_answers
    from layersift.files import require_new, write_json
    from layersift.load.task import encode_sample
    from layersift.provenance import command, versions
    from layersift.select.sample import describe
    from layersift.train.run_record import RunRecord

    from .screen import Screen

    screen = Screen(quiet, json)
    if output is not None:
        require_new(output, "evaluate")
    record = RunRecord.load(run)
    table = run_table(record, data, split)
    count = min(max_samples or len(table.rows), len(table.rows))
    resolved = {
        "run": str(run),
        "model": record.source["name"],
        "layers": record.mask,
        "data": f"{data}, {count} of {len(table.rows)} rows",
        "columns": table.described(),
        "output": str(output or "the screen"),
    }
    if dry_run:
        screen.say(o.plan(resolved))
        screen.result(resolved)
        return
    screen.say(f"{resolved['columns']}; layers {record.mask}")
    _, loaded, encoder = load_run(run, device)
    encoded = encode_sample(table, encoder, max_samples, seed)
    if notice := encoded.notice(encoder.limit()):
        screen.say(notice)
    with screen.stage("evaluating", len(encoded.examples)) as progress:
        found = evaluate_model(loaded.model, encoder, encoded.examples, loaded.pad_id, progress)
    if exact_match:
        rows = encoded.rows[:exact_match]
        with screen.stage("answering", len(rows)) as progress:
            answers = match_answers(loaded.model, encoder, table, rows, loaded.pad_id, max_new_tokens, progress)
        found = replace(found, metrics=found.metrics | answers.metrics)
    result = {
        "schema_version": 1,
        "run": str(run),
        "data": describe(table),
        **found.to_json(),
        "seed": seed,
        "versions": versions(),
        "command": command(),
    }
    if output is not None:
        write_json(output, result)
    error = found.standard_error
    for place, (name, value) in enumerate(found.metrics.items()):
        spread = f" ± {error:.4f}" if place == 0 and error is not None else ""
        screen.say(f"{name.replace('_', ' '):<12} {'undefined' if value is None else f'{value:.4f}'}{spread}")
    screen.say(f"{found.samples} samples; ± is the standard error over them")
    screen.result(result)
