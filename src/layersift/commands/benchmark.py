"""`layersift benchmark`: a trained run, or an base model, on benchmarks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layersift.config.recipe import ModelSource
from layersift.errors import LayersiftError

from . import options as o

if TYPE_CHECKING:
    from layersift.models.load import LoadedModel
    from layersift.records.runs import RunRecord


def benchmark(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The output of `layersift train`, or a MODEL as it is.")],
    tasks: Annotated[str, typer.Option(help="gsm8k, humaneval, mbpp, or tasks of lm_eval; separated by commas.")],
    task_path: Annotated[Path | None, typer.Option(help="A directory with task files in lm_eval's YAML.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="FILE or TASK=FILE: the documents of gsm8k or mbpp. May be repeated.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="The first so many documents of each task. [all]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=10**6, help="Prompts a forward pass.")] = 16,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, max=10**6, help="Longest answer in tokens. [the task's]")
    ] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run programs that the model writes, under limits.")
    ] = False,
    base: Annotated[bool, typer.Option("--base", help="RUN's model without its adapters.")] = False,
    device: o.Device = None,
    quantization: Annotated[
        str | None, typer.Option(help="Of MODEL, 4bit or 8bit; a run has that of its training.")
    ] = None,
    trust_remote_code: o.TrustRemoteCode = False,
    seed: o.Seed = 0,
    output: o.Output = None,
    config: o.Config = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Run benchmarks on the adapters in RUN, or on MODEL. Prompts are written as in training."""
    from layersift.files import write_json

    from .console import Console

    console = Console(quiet, json)
    record = _record(run)
    source = ModelSource(run, device=device, trust_remote_code=trust_remote_code, quantization=quantization)

    from layersift.evaluation import harness, task_index
    from layersift.evaluation.own_tasks import sort_data
    from layersift.provenance import command, machine, versions

    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise LayersiftError(f"--tasks {tasks!r}: names of tasks are needed, separated by commas")
    files = sort_data(data or [], names)
    merged = f"{run}/merged" if record is not None else run
    if record is not None and record.columns.image is not None:
        raise LayersiftError(f"{run} was trained on images. {task_index.hand_over(','.join(names), merged)}")
    to_run = task_index.find_tasks(names, task_path, files, allow_code_execution, merged)
    adapters = record.mask if record is not None and not base else None
    resolved = {
        "model": record.source.name if record is not None else run,
        "adapters": adapters or "none",
        "tasks": ", ".join(names),
        "data": ", ".join(f"{name}: {file}" for name, file in files.items()) or "the tasks' own",
        "documents": f"the first {limit}" if limit else "all",
        "runs code": ", ".join(to_run.running_code) or "no",
        "output": str(output or "the screen"),
    }
    if dry_run:
        console.say(o.listed(resolved))
        console.result(resolved)
        return
    if to_run.running_code:
        console.say(task_index.limits_notice(to_run))
    task_dict = task_index.load_tasks(to_run)
    loaded, template = _load(source, record, base, seed)
    console.say(f"{resolved['model']}; layers with adapters: {resolved['adapters']}")
    results = harness.benchmark(
        loaded,
        task_dict,
        harness.HowToRun(limit, batch_size, max_new_tokens, allow_code_execution, seed),
        chat_template=template,
        reporter=console,
    )
    if results.cut_prompts:
        console.say(f"{results.cut_prompts} prompts were longer than the model reads; their beginning was cut off")
    result = {
        "schema_version": 1,
        "run": run if record is not None else None,
        "model": loaded.name,
        "model_revision": loaded.revision,
        "mask": adapters,
        **results.to_json(),
        "limit": limit,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "machine": machine(),
        "versions": versions() | harness.harness_versions(),
        "command": command(),
    }
    if output is not None:
        write_json(output, result, new=True)
    rows = [["task", "metric", "value", "±", "samples"]]
    for name, task in results.tasks.items():
        rows += _rows(name, task.metrics, f"{task.samples} of {task.available}")
    for name, metrics in results.groups.items():
        rows += _rows(name, metrics, "")
    console.table(rows)
    console.result(result)


def _record(run: str) -> RunRecord | None:
    """The record of a run that can be asked; None where ``run`` is a model."""
    from layersift.records.runs import RECORD_FILE, RunRecord

    if not (Path(run) / RECORD_FILE).exists():
        return None
    record = RunRecord.load(Path(run))
    if record.encoder.kind not in ("instruction", "text"):
        raise LayersiftError(f"{run} is a run on {record.encoder.kind} data; benchmarks need a model that writes")
    return record


def _load(source: ModelSource, record: RunRecord | None, base: bool, seed: int) -> tuple[LoadedModel, str | None]:
    """The model, and the chat template that its training put in the place of its own."""
    from layersift.evaluation.load_run import load_run
    from layersift.models.load import load_model

    if record is None:
        return load_model(source, "instruction", seed=seed), None
    _, loaded, encoder = load_run(Path(source.name), source.device, not base, source.trust_remote_code)
    return loaded, encoder.chat_template


def _rows(name: str, metrics: dict[str, float | None], samples: str) -> list[list[str]]:
    """A line a metric, with its standard error behind it."""
    rows = []
    for metric, value in metrics.items():
        base, comma, kind = metric.partition(",")
        if base.endswith("_stderr"):
            continue
        error = metrics.get(f"{base}_stderr{comma}{kind}")
        shown = ["undefined" if value is None else f"{value:.4f}", "" if error is None else f"{error:.4f}"]
        rows.append([name, metric, *shown, samples])
    return rows
