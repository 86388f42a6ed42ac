"""`layersift run`: select, train and evaluate by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file (docs/recipes.md), or a name from `layersift recipes`.")
    ],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="key=value or section.key=value, over what the recipe says.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New, or of the same recipe, which is carried on.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Only try it out: tiny model, made-up rows, a few steps.")
    ] = False,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Carry out RECIPE and end in one table. What is finished is not done again."""
    from layersift.compare import shelf
    from layersift.compare.figures import is_figure, read_figure, run_figure
    from layersift.compare.pipeline import read_tables
    from layersift.compare.pipeline import run as run_recipe
    from layersift.compare.recipe import read_recipe
    from layersift.compare.report import caption, table_rows
    from layersift.compare.smoke import shrink
    from layersift.load.blocks import choose_stack, find_stacks
    from layersift.load.models import empty_model
    from layersift.select.settings import how_many

    from .screen import Screen

    screen = Screen(quiet, json)
    path = shelf.find(recipe)
    if is_figure(path):
        figure = read_figure(path, str(output) if output else None)
        if dry_run:
            screen.say(o.plan({"figure": figure.figure, "recipes": ", ".join(figure.recipes), "output": figure.output}))
            return
        found = run_figure(figure, assignments or [], smoke, screen)
        screen.say(f"picture: {figure.output}{'-smoke' if smoke else ''}/figure.png")
        screen.result({name: [r.to_json() for r in outcome.results] for name, outcome in found.items()})
        return
    resolved = read_recipe(path, assignments, str(output) if output else None)
    if smoke:
        resolved = shrink(resolved, Path(f"{resolved.output}-smoke-inputs"))
    if dry_run:
        tables = read_tables(resolved)
        stack = choose_stack(find_stacks(empty_model(resolved.model, tables.train.kind)), resolved.select.tower)
        tests, most = tables.test, resolved.evaluate.max_samples
        count = min(resolved.train.max_samples or len(tables.train.rows), len(tables.train.rows))
        lines = {
            "model": f"{resolved.model.name}, {stack.pattern}, {stack.num_layers} layers",
            "columns": tables.train.described(),
            "layers": f"{how_many(resolved.select, stack.num_layers) or 'as many as fit'} of {stack.num_layers}",
            "train": f"{count} rows, {resolved.train.steps(count)} steps an arm",
            "test": ", ".join(
                f"{min(most or len(t.rows), len(t.rows))} rows {name}".strip() for name, t in tests.items()
            ),
            "arms": ", ".join(resolved.arms),
            "output": resolved.output,
        }
        screen.say(o.plan(lines))
        screen.result(lines | {"recipe": resolved.to_json()})
        return
    results = run_recipe(resolved, screen)
    if results:
        screen.table(table_rows(results))
        screen.say(caption(results))
    screen.say(f"written to {resolved.output}")
    screen.result([r.to_json() for r in results])
