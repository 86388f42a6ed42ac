"""`layersift inspect`: what blocks does a model have, what would be adapted, and what it would read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from layersift.config.defaults import EPOCHS
from layersift.config.limits import Devices, Limits
from layersift.config.recipe import DataSettings, ModelSource, TaskKind
from layersift.config.train import TrainSettings

from . import options as o
from .flags import Without, with_settings, words_of

if TYPE_CHECKING:
    from layersift.data.table import Table

    from .console import Console

KINDS = ("same", "near")  # of rows that other data hold, too
TOKENS = 256  # of a sample, in a plan


@with_settings
def inspect(
    model: Annotated[ModelSource, Without(("device", "stream"))],
    data: DataSettings | None = None,
    show: Annotated[
        int, typer.Option(min=1, max=10**4, help="Of --data: so many samples, «marked» where the loss is taken.")
    ] = 3,
    against: Annotated[
        str | None,
        typer.Option(help="Of --data: count the rows that this data (its split train) holds, too, the same or nearly."),
    ] = None,
    selection: Annotated[str | None, typer.Option(help="A selection file: list exactly what it adapts.")] = None,
    layers: o.Layers = None,
    target_modules: Annotated[
        str | None, typer.Option(help="all-linear, a regex, or names separated by commas. [PEFT's default]")
    ] = None,
    rank: Annotated[int, typer.Option(help="LoRA rank for the count of parameters.")] = TrainSettings.rank,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Also what a training step would cost, for all layers, halves, --selection or --layers."
        ),
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, max=10**6, help="Of the plan: samples a step.")
    ] = TrainSettings.batch_size,
    tokens: Annotated[
        int | None, typer.Option(min=1, max=10**7, help="Of the plan: tokens a sample. [256, or as many as it reads]")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Of the plan: less memory, more time.")
    ] = False,
    strategy: Annotated[
        str, typer.Option(help="Of the plan: a way of training all layers, or --selection; docs/strategies.md.")
    ] = TrainSettings.strategy,
    epochs: Annotated[float, typer.Option(help="Of the plan: how long it trains.")] = EPOCHS,
    limits: Annotated[Limits, Without(("time", "params", "adapter_size"))] = Limits(),  # noqa: B008
    devices: Devices = Devices(),  # noqa: B008
    config: o.Config = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Show the blocks of MODEL, without loading its weights, and what an adapter on them would train.

    With --data also what the model would read of it, and on which tokens the loss would be taken.
    """
    from layersift.adapt.methods import adapter_config
    from layersift.config.limits import planned_on
    from layersift.data.columns import UnknownColumnsError
    from layersift.errors import LayersiftError
    from layersift.models.load import empty_model
    from layersift.models.source import locate
    from layersift.models.stacks import longest_text, tell_layers
    from layersift.plan.training import StepSize
    from layersift.records.selection import Selection
    from layersift.report.model_report import cost_of_choices, describe_selection, describe_stacks

    from .console import Console, next_step

    console = Console(quiet, json)
    if selection and layers:
        raise LayersiftError("give --selection FILE or --layers last:8, not both")
    devices.require(batch_size, model.quantization)
    chosen = Selection.load(selection) if selection else None
    empty = empty_model(model)
    if layers is not None:
        chosen = Selection.of_layers(empty, layers)
        console.say(f"layers: {tell_layers(chosen.stack(empty), chosen.selected_layers)}, counted from 0")
    trained = TrainSettings(rank=rank, target_modules=target_modules, strategy=strategy, epochs=epochs)
    lora = adapter_config(trained, "text" if empty.can_generate() else "classification", 1)
    stacks, table = describe_stacks(empty, lora)
    result: dict[str, Any] = {"model": model.name, "class": type(empty).__name__, "stacks": stacks}
    console.say(f"{model.name}: {result['class']}")
    if model.name.lower().endswith(".gguf"):
        result["directory"] = locate(model)
        console.say(f"unpacked for other libraries, transformers' Trainer among them: {result['directory']}")
    console.table(table)
    if chosen is not None and lora is not None:
        own = result["selection"] = describe_selection(empty, chosen, lora)
        counted = f"{len(own['modules'])} modules, {own['lora_parameters']:,} LoRA parameters of rank {rank}"
        console.say(f"\n{chosen.mask} adapts {counted}:")
        console.say("\n".join(own["modules"]))
    if plan:
        most = longest_text(empty.config) or TOKENS
        kind: TaskKind = "instruction" if empty.can_generate() else "classification"
        size = StepSize(kind, batch_size, tokens or min(TOKENS, most), checkpointing=gradient_checkpointing)
        there = limits.device
        costs = cost_of_choices(planned_on(model, there), chosen, trained, size, limits.memory_bytes, devices)
        console.say(f"\n{costs.base}\n{costs.step}")
        console.table(costs.table())
        console.say("")
        console.table(costs.memory_table(there))
        if there is not None:
            console.say(f"\nTimes are estimates: {there.described(costs.kind)}.")
        if costs.verdict:
            console.say(costs.verdict)
        result |= {"plan": costs.choices, "verdict": costs.verdict or None, "shared_by": devices.to_json()}
    if data is not None:
        try:
            rows, result["samples"] = _samples(model, data, show, console)
        except UnknownColumnsError:
            console.result(result | {"proposed": _propose(model, data, empty.can_generate(), console)})
            raise
        if against is not None:
            result["overlap"] = _overlap(rows, against, show, console)
    named = words_of(model, data) if data is not None else [*words_of(model), "--data", "FILE"]
    console.say(next_step("see what to train", "layersift", "advise", *named))
    console.result(result)


def _propose(model: ModelSource, data: DataSettings, writes: bool, console: Console) -> list[str]:
    """Commands that name the columns which the data might be read by, the likeliest first.

    Args:
        writes: whether the model can be trained to write text; else only ways to classify or to predict numbers count.
    """
    import shlex

    from layersift.data.columns import likely_columns, propose_columns
    from layersift.data.rows import read_rows

    rows = read_rows(data.data, data.split)
    begun = f"layersift inspect {shlex.quote(model.name)} --data {shlex.quote(data.data)}"
    ways = propose_columns(rows, data.columns(), data.task)
    ways = [way for way in ways if writes or way.kind not in ("instruction", "text")]
    commands = [f"{begun} {way.flags}" for way in ways]
    if likely := likely_columns(rows):
        console.say("")
        console.table([["flag", "likely columns"], *([flag, ", ".join(names)] for flag, names in likely.items())])
    for way, command in zip(ways, commands, strict=True):
        console.say(f"\n{way.kind}:\n{command}")
    return commands


def _overlap(table: Table, against: str, count: int, console: Console) -> dict[str, Any]:
    """Count and show the rows that other data hold, too."""
    from layersift.data.split import find_overlap
    from layersift.data.table import read_alike

    others = read_alike(against, table.columns, table.kind)
    overlap = find_overlap(table, others)
    rows = len(table.rows)
    near = f"{len(overlap.near)} more nearly do"
    if table.columns.image:
        near = "as bytes; images that are nearly the same are not looked for"
    console.say(f"\n{len(overlap.same)} of {rows} rows read like rows of {against}, {near}")
    pairs = {kind: [(table.where(a), others.where(b)) for a, b in getattr(overlap, kind).items()] for kind in KINDS}
    for kind, of in pairs.items():
        for mine, theirs in of[:count]:
            console.say(f"{kind}: {mine} and {theirs}")
    return {"rows": rows, **pairs}


def _samples(model: ModelSource, data: DataSettings, count: int, console: Console) -> tuple[Table, list[str]]:
    """Show the first samples as the model reads them."""
    from layersift.report.model_report import write_out_sample
    from layersift.task import Task

    task = Task.open(model, data)
    table = task.table
    console.say(f"\n{table.described()}")
    texts = []
    for index in range(min(count, len(table.rows))):
        texts.append(write_out_sample(task, index))
        console.say(f"\n{table.where(index)}:\n{texts[-1]}")
    return table, texts
