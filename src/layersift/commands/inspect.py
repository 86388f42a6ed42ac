"""`layersift inspect`: what blocks does a model have, what would be adapted, and what it would read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from layersift.config.defaults import EPOCHS
from layersift.config.inputs import DataSettings, ModelSource, TaskKind
from layersift.config.train import TrainSettings

from . import options as o
from .flags import Without, with_settings

if TYPE_CHECKING:
    from layersift.plan.training import StepSize
    from layersift.records.selection import Selection

    from .console import Console


TOKENS = 256  # of a sample, in a plan
STEPS = 240  # of a training by a strategy, whose mean step is told


@with_settings
def inspect(
    model: Annotated[ModelSource, Without(("device", "stream"))],
    data: DataSettings | None = None,
    show: Annotated[
        int, typer.Option(min=1, max=10**4, help="Of --data: so many samples, «marked» where the loss is taken.")
    ] = 3,
    selection: Annotated[str | None, typer.Option(help="A selection file: list exactly what it adapts.")] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="all-linear, a regex, or names separated by commas. [PEFT's default]")
    ] = None,
    rank: Annotated[int, typer.Option(help="LoRA rank for the count of parameters.")] = TrainSettings.rank,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Also what a training step would cost, for all layers, halves and --selection."),
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
    config: o.Config = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Show the blocks of MODEL, without loading its weights, and what an adapter on them would train.

    With --data also what the model would read of it, and on which tokens the loss would be taken.
    """
    from dataclasses import asdict

    from layersift.adapt.inspection import adapted_modules, trained_by_layer
    from layersift.adapt.methods import adapter_config
    from layersift.data.columns import UnknownColumnsError
    from layersift.errors import AdapterError
    from layersift.models.load import empty_model
    from layersift.models.stacks import find_stacks
    from layersift.records.selection import Selection

    from .console import Console

    console = Console(quiet, json)
    chosen = Selection.load(selection) if selection else None
    empty = empty_model(model)
    trained = TrainSettings(rank=rank, target_modules=target_modules, strategy=strategy, epochs=epochs)
    kind: TaskKind = "text" if empty.can_generate() else "classification"
    lora = adapter_config(trained, kind, 1)
    found: dict[str, Any] = {"model": model.name, "class": type(empty).__name__, "stacks": []}
    rows = [["blocks", "tower", "layers", "class", "adapted in each", "LoRA parameters, all layers"]]
    stacks, refused = find_stacks(empty), None
    for stack in stacks:
        try:
            names = adapted_modules(empty, stack, range(stack.num_layers), lora)
            parameters = sum(trained_by_layer(empty, stack, range(stack.num_layers), lora) or [])
        except AdapterError as error:  # a vision tower, say, that has none of the targets
            names, parameters, refused = (), 0, error
        leaves = list(dict.fromkeys(n.removeprefix(f"{stack.path}.").partition(".")[2] for n in names))
        found["stacks"].append(asdict(stack) | {"adapted": leaves, "lora_parameters": parameters})
        classes = ", ".join(dict.fromkeys(stack.block_classes))
        rows.append([stack.pattern, stack.tower, str(stack.num_layers), classes, ", ".join(leaves), f"{parameters:,}"])
    if refused is not None and not any(entry["adapted"] for entry in found["stacks"]):
        raise refused
    console.say(f"{model.name}: {found['class']}")
    console.table(rows)
    if chosen is not None:
        stack = chosen.stack(empty)
        assert lora is not None  # the method is LoRA
        own = chosen.config_for(empty, lora)
        names = adapted_modules(empty, stack, chosen.selected_layers, own)
        parameters = sum(trained_by_layer(empty, stack, chosen.selected_layers, own) or [])
        found["selection"] = {"mask": chosen.mask, "modules": list(names), "lora_parameters": parameters}
        console.say(f"\n{chosen.mask} adapts {len(names)} modules, {parameters:,} LoRA parameters of rank {rank}:")
        console.say("\n".join(names))
    if plan:
        from layersift.models.architecture import longest_text
        from layersift.plan.training import StepSize

        most = longest_text(empty.config) or TOKENS
        size = StepSize("text", batch_size, tokens or min(TOKENS, most), checkpointing=gradient_checkpointing)
        found["plan"] = _plan(model, chosen, trained, size, console)
    if data is not None:
        try:
            found["samples"] = _samples(model, data, show, console)
        except UnknownColumnsError:
            console.result(found | {"proposed": _propose(model, data, empty.can_generate(), console)})
            raise
    console.result(found)


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


def _samples(model: ModelSource, data: DataSettings, count: int, console: Console) -> list[str]:
    """The first samples as the model reads them, with the tokens that bear the loss marked."""
    from layersift.data.encode import mark_trained
    from layersift.task import Task

    task = Task.open(model, data)
    table, encoder = task.table, task.encoder
    console.say(f"\n{table.described()}")
    texts = []
    for index in range(min(count, len(table.rows))):
        example, cut = encoder.encode(table, index)
        end = "" if example is None or not cut else f"\n(cut to {encoder.limit()} tokens)"
        text = (
            f"left out: the prompt alone fills {encoder.limit()} tokens"
            if example is None
            else mark_trained(example, encoder)
        )
        texts.append(f"{text}{end}")
        console.say(f"\n{table.where(index)}:\n{texts[-1]}")
    return texts


def _plan(
    model: ModelSource, chosen: Selection | None, trained: TrainSettings, size: StepSize, console: Console
) -> list[dict[str, Any]]:
    """Cost of a step for several choices of layers, each with its ratio to all layers."""
    from dataclasses import asdict, replace

    from layersift.adapt.methods import adapter_config
    from layersift.config.train import STATIC, parse_strategy
    from layersift.models.load import empty_model
    from layersift.models.quantized import base_bytes
    from layersift.models.stacks import find_stack
    from layersift.plan.model import MeasuredModel
    from layersift.plan.planner import Planner
    from layersift.plan.training import Length, image_shape

    writes = empty_model(model).can_generate()
    size = replace(size, kind="instruction" if writes else "classification")
    empty = empty_model(model, size.kind)
    stack = chosen.stack(empty) if chosen is not None else find_stack(empty)
    layers = stack.num_layers
    half = max(1, layers // 2)
    choices = {"all": range(layers), "last half": range(layers - half, layers), "first half": range(half)}
    wanted = {name: tuple(those) for name, those in choices.items()}
    if chosen is not None:
        wanted["selected"] = chosen.selected_layers
    lora = adapter_config(trained, size.kind, 1)
    measured = MeasuredModel(empty, stack)
    planners = dict.fromkeys(wanted, Planner(empty, stack, lora, measured))
    if chosen is not None and lora is not None:
        planners["selected"] = Planner(empty, stack, chosen.config_for(empty, lora), measured)
    plans = {name: planners[name].step(those, size) for name, those in wanted.items()}
    found = [{"name": name} | asdict(p) | {"memory_bytes": p.memory_bytes} for name, p in plans.items()]
    if trained.strategy != STATIC:
        followed_on = "selected" if "selected" in wanted else "all"
        strategy, those = parse_strategy(trained.strategy), wanted[followed_on]
        planner = planners[followed_on]
        same = {
            "layers": those,
            "memory_bytes": planner.peak(those, size, strategy),
            "parameters": plans[followed_on].parameters,
        }
        for kept in (False, True) if trained.num_epochs > 1 else (False,):
            flops = planner.training(those, size, strategy, Length(STEPS, trained.num_epochs, kept)).flops / STEPS
            found.append({"name": trained.strategy + (", states kept" if kept else ""), "flops": flops} | same)
    whole = plans["all"]
    rows = [
        [
            p["name"],
            f"{p['flops'] / 1e9:,.1f} GFLOP ({p['flops'] / whole.flops:.2f})",
            f"{p['memory_bytes'] / 2**20:,.1f} MiB ({p['memory_bytes'] / whole.memory_bytes:.2f})",
            f"{p['parameters']:,} ({p['parameters'] / whole.parameters:.2f})",
        ]
        for p in found
    ]
    base, bits = base_bytes(empty, model.quantization), 8 * next(empty.parameters()).element_size()
    console.say(f"\nThe loaded base: {base / 2**20:,.1f} MiB ({model.quantization or f'{bits} bits a number'}).")
    image = image_shape(empty)
    each = f"{size.tokens} tokens" if image is None else " x ".join(map(str, image)) + " numbers"
    console.say(f"One step on {size.batch_size} samples of {each} ({size.kind}):")
    console.table([["layers", "operations a step", "memory above the model", "trained parameters"], *rows])
    return found
