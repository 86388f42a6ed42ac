"""`layersift sweep`: how many layers are enough."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def sweep(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name from `layersift recipes`.")],
    sizes: Annotated[
        str | None, typer.Option(help="Numbers of layers, separated by commas. [1, 2, 4, ..., half, all]")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="key=value or section.key=value, over what the recipe says.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New, or of the same sweep, which is carried on.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Only try it out: tiny model, made-up rows, a few steps.")
    ] = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Train the recipe's adapters on the N most important layers for several N, all from one scoring pass."""
    from dataclasses import replace

    from layersift.compare import shelf
    from layersift.compare.figures import draw, outcome
    from layersift.compare.recipe import read_recipe
    from layersift.compare.report import caption, table_rows
    from layersift.compare.smoke import shrink
    from layersift.load.blocks import choose_stack, find_stacks
    from layersift.load.models import empty_model
    from layersift.select.baselines import sweep_arms

    from .screen import Screen

    screen = Screen(quiet, json)
    given = read_recipe(shelf.find(recipe), assignments, str(output) if output else None)
    resolved = replace(given, output=str(output) if output else f"{given.output}-sweep")
    if smoke:
        resolved = shrink(resolved, Path(f"{resolved.output}-smoke-inputs"))
    layers = choose_stack(find_stacks(empty_model(resolved.model)), resolved.select.tower).num_layers
    resolved = replace(resolved, arms=(*sweep_arms(layers, sizes), "untouched"))
    found = outcome(resolved, screen)
    name = resolved.output.rpartition("/")[2]
    draw("sweep", {name: found}, Path(resolved.output))
    screen.table(table_rows(found.results))
    screen.say(caption(found.results))
    screen.say(f"picture: {resolved.output}/figure.png")
    screen.result([r.to_json() for r in found.results])
