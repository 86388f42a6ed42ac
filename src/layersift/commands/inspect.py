"""`layersift inspect`: what blocks does a model have, and what would be adapted."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options as o


def inspect(
    model: o.Model,
    selection: Annotated[str | None, typer.Option(help="A selection file: list exactly what it adapts.")] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="all-linear, a regex, or names separated by commas. [PEFT's default]")
    ] = None,
    rank: Annotated[int, typer.Option(help="LoRA rank for the count of parameters.")] = 8,
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
    screen.result(found)
