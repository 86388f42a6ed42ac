"""`layersift inspect`: what blocks does a model have, and what would be adapted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from layersift.select.selection import Selection

    from .screen import Screen


def inspect(
    model: o.Model,
    selection: Annotated[str | None, typer.Option(help="A selection file: list exactly what it adapts.")] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="all-linear, a regex, or names separated by commas. [PEFT's default]")
    ] = None,
    rank: Annotated[int, typer.Option(help="LoRA rank for the count of parameters.")] = 8,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Also what a training step would cost, for all layers, halves and --selection."),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Of the plan: samples a step.")] = 16,
    tokens: Annotated[int, typer.Option(help="Of the plan: tokens a sample.")] = 256,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Of the plan: less memory, more time.")
    ] = False,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    config: o.Config = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Show the blocks of MODEL, without loading its weights, and what an adapter on them would train."""
    flags = dict(locals())
    from dataclasses import asdict

    from layersift.adapt.inspection import adapted_modules, trained_by_layer
    from layersift.adapt.targets import stack_of
    from layersift.errors import AdapterError
    from layersift.load.blocks import find_stacks
    from layersift.load.models import empty_model
    from layersift.select.selection import Selection
    from layersift.train.settings import TrainSettings

    from .screen import Screen

    screen = Screen(quiet, json)
    chosen = Selection.load(selection) if selection else None
    empty = empty_model(o.model_source(model, flags))
    lora = TrainSettings(rank=rank, target_modules=target_modules).adapter("text", 1)
    found: dict[str, Any] = {"model": model, "class": type(empty).__name__, "stacks": []}
    rows = [["blocks", "tower", "layers", "class", "adapted in each", "LoRA parameters, all layers"]]
    for stack in find_stacks(empty):
        try:
            names = adapted_modules(empty, stack, range(stack.num_layers), lora)
            parameters = sum(trained_by_layer(empty, stack, range(stack.num_layers), lora) or [])
        except AdapterError:  # a vision tower, say, that has none of the targets
            names, parameters = (), 0
        leaves = list(dict.fromkeys(n.removeprefix(f"{stack.path}.").partition(".")[2] for n in names))
        found["stacks"].append(asdict(stack) | {"adapted": leaves, "lora_parameters": parameters})
        classes = ", ".join(dict.fromkeys(stack.block_classes))
        rows.append([stack.pattern, stack.tower, str(stack.num_layers), classes, ", ".join(leaves), f"{parameters:,}"])
    screen.say(f"{model}: {found['class']}")
    screen.table(rows)
    if chosen is not None:
        stack = stack_of(empty, chosen)
        names = adapted_modules(empty, stack, chosen.selected_layers, lora)
        parameters = sum(trained_by_layer(empty, stack, chosen.selected_layers, lora) or [])
        found["selection"] = {"mask": chosen.mask, "modules": list(names), "lora_parameters": parameters}
        screen.say(f"\n{chosen.mask} adapts {len(names)} modules, {parameters:,} LoRA parameters of rank {rank}:")
        screen.say("\n".join(names))
    if plan:
        found["plan"] = _plan(model, flags, chosen, screen)
    screen.result(found)


def _plan(model: str, flags: dict[str, Any], chosen: Selection | None, screen: Screen) -> list[dict[str, Any]]:
    """Cost of a step for several choices of layers, each with its ratio to all layers."""
    from dataclasses import asdict

    from layersift.adapt.targets import stack_of
    from layersift.load.blocks import choose_stack, find_stacks
    from layersift.load.models import empty_model
    from layersift.train.plan import plan
    from layersift.train.settings import TrainSettings

    source = o.model_source(model, flags)
    writes = empty_model(source).can_generate()
    kind: Any = "instruction" if writes else "classification"
    empty = empty_model(source, kind)
    stack = stack_of(empty, chosen) if chosen is not None else choose_stack(find_stacks(empty))
    layers = stack.num_layers
    half = max(1, layers // 2)
    choices = {"all": range(layers), "last half": range(layers - half, layers), "first half": range(half)}
    wanted = {name: tuple(those) for name, those in choices.items()}
    if chosen is not None:
        wanted["selected"] = chosen.selected_layers
    lora = TrainSettings(rank=flags["rank"], target_modules=flags["target_modules"]).adapter(kind, 1)
    size = {
        "batch_size": flags["batch_size"],
        "tokens": flags["tokens"],
        "checkpointing": flags["gradient_checkpointing"],
    }
    plans = {name: plan(empty, stack, those, lora, kind, **size) for name, those in wanted.items()}
    whole = plans["all"]
    rows = [["layers", "operations a step", "memory above the model", "trained parameters"]]
    for name, p in plans.items():
        rows.append(
            [
                name,
                f"{p.flops / 1e9:,.1f} GFLOP ({p.flops / whole.flops:.2f})",
                f"{p.memory_bytes / 2**20:,.1f} MiB ({p.memory_bytes / whole.memory_bytes:.2f})",
                f"{p.parameters:,} ({p.parameters / whole.parameters:.2f})",
            ]
        )
    screen.say(f"\nOne step on {flags['batch_size']} samples of {flags['tokens']} tokens ({kind}):")
    screen.table(rows)
    return [{"name": name} | asdict(p) | {"memory_bytes": p.memory_bytes} for name, p in plans.items()]
