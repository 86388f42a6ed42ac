"""`layersift demo`: the main job on a real model and real text, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def demo(
    model: Annotated[
        str, typer.Option(help="minilm (docstrings to packages) or smollm2 (writing functions).")
    ] = "minilm",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New, or of an earlier demo, which is carried on.")
    ] = Path("layersift-demo"),
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Select, train and compare layers of a small model on text from the Python that is running."""
    from layersift.compare.demo import demo_recipe
    from layersift.compare.pipeline import run
    from layersift.compare.report import caption, table_rows
    from layersift.errors import unknown_name

    from .screen import Screen

    if model not in ("minilm", "smollm2"):
        raise unknown_name("demo model", model, ["minilm", "smollm2"])
    screen = Screen(quiet, json)
    recipe = demo_recipe(model, output)  # type: ignore[arg-type]
    results = run(recipe, screen)
    screen.table(table_rows(results))
    screen.say(caption(results))
    screen.say(f"picture: {recipe.output}/importance.png; table: {recipe.output}/table.md")
    screen.result([r.to_json() for r in results])
