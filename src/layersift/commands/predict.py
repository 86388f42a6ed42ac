"""`layersift predict`: what a trained run says of new rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layersift.config.recipe import EvaluateSettings

from . import options as o


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output of `layersift train`.")],
    data: Annotated[
        str, typer.Option(help="Rows in any form that `layersift train` reads; labels and answers need not be there.")
    ],
    split: Annotated[str, typer.Option(help="Split of a directory or Hub dataset.")] = EvaluateSettings.split,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=10**6, help="Longest generated answer in tokens.")
    ] = EvaluateSettings.max_new_tokens,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of the data to stand beside the predictions, label as data_label; again, or between commas, "
            "for more."
        ),
    ] = None,
    device: o.Device = None,
    trust_remote_code: o.TrustRemoteCode = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .csv or .jsonl file; must not exist. [the screen]")
    ] = None,
    config: o.Config = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Predict with the adapters in RUN: label and probability, number, or answer, for every row of the data."""
    from layersift.data.rows import read_rows
    from layersift.evaluation.load_run import load_run
    from layersift.evaluation.predict import as_text, columns_to_keep, keep_columns, require_form, rows_to_predict
    from layersift.evaluation.predict import predict as predict_rows
    from layersift.files import write_text
    from layersift.processes import is_main_process, join_processes
    from layersift.progress import Reporter
    from layersift.records.runs import RunRecord

    from .console import Console, next_step

    console = Console(quiet, json)
    if output is not None:
        require_form(output)
    record = RunRecord.load(run)
    rows = read_rows(data, split)
    table = rows_to_predict(record, rows, data)
    kept = columns_to_keep(keep or [], rows, data, table.kind)
    # Without a terminal a stage is a line on standard output, where predictions are to stand alone.
    shown = console if output is not None or console.err.is_terminal else Reporter()
    with join_processes():
        _, loaded, encoder = load_run(run, device, trust_remote_code=trust_remote_code)
        with shown.stage("predicting", len(table.rows)) as progress:
            predictions, cut = predict_rows(loaded.model, encoder, table, loaded.pad_id, max_new_tokens, progress)
    if cut:
        console.warn(f"{cut} of {len(predictions)} rows were cut to {encoder.limit()} tokens")
    predictions = keep_columns(predictions, rows, kept)
    if output is not None and is_main_process():
        write_text(output, as_text(predictions, output.suffix), new=True)
        console.say(f"{len(predictions)} rows; written to {output}")
        console.say(next_step("judge the run on rows with labels", "layersift", "evaluate", run, "--data", "FILE"))
    else:
        console.say(as_text(predictions).removesuffix("\n"))
    console.result(predictions)
