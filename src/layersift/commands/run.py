"""`layersift run`: select, train and evaluate by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see docs/recipes.md.")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="key=value or section.key=value, over what the recipe says.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New, or of the same recipe, which is carried on.")
    ] = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Carry out RECIPE and end in one table. What is finished is not done again."""
    from layersift.compare.pipeline import read_tables
    from layersift.compare.pipeline import run as run_recipe
    from layersift.compare.recipe import read_recipe
    from layersift.compare.report import caption, table_rows
    from layersift.load.blocks import choose_stack, find_stacks
    from layersift.load.models import empty_model
    from layersift.select.choose import how_many

    from .screen import Screen

    screen = Screen(quiet, json)
    resolved = read_recipe(recipe, assignments, str(output) if output else None)
    if dry_run:
        tables = read_tables(resolved)
        stack = choose_stack(find_stacks(empty_model(resolved.model, tables.train.kind)), resolved.select.tower)
        count = min(resolved.train.max_samples or len(tables.train.rows), len(tables.train.rows))
        lines = {
            "model": f"{resolved.model.name}, {stack.pattern}, {stack.num_layers} layers",
            "columns": tables.train.described(),
            "layers": f"{how_many(resolved.select, stack.num_layers)} of {stack.num_layers}",
            "train": f"{count} rows, {resolved.train.steps(count)} steps an arm",
            "test": f"{min(resolved.evaluate.max_samples or len(tables.test.rows), len(tables.test.rows))} rows",
            "arms": ", ".join(resolved.arms),
            "output": resolved.output,
        }
        screen.say(o.plan(lines))
        screen.result(lines | {"recipe": resolved.to_json()})
        return
    results = run_recipe(resolved, screen)
    screen.table(table_rows(results))
    screen.say(caption(results))
    screen.say(f"written to {resolved.output}")
    screen.result([r.to_json() for r in results])
