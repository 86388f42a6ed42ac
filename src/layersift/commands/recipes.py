"""`layersift recipes`: what can be run by name."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one.")] = None,
    json: o.Json = False,
) -> None:
    """List the recipes that come with layersift, or print one: what the paper reports, what it needs, its settings."""
    from layersift.config.recipe import find_recipe, recipe_names

    from .console import Console

    console = Console(as_json=json)
    if name is None:
        console.say("\n".join(recipe_names()))
        console.result(recipe_names())
        return
    text = find_recipe(name).read_text(encoding="utf-8")
    console.say(text.rstrip("\n"))
    console.result(text)
