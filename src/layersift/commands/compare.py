"""`layersift compare`: criteria side by side, trained alike on the user's own data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layersift.errors import LayersiftError

from . import options as o

if TYPE_CHECKING:
    from layersift.config.recipe import Recipe

Criteria = Annotated[str | None, typer.Option(help="Names from `layersift criteria`, separated by commas.")]
Seeds = Annotated[int | None, typer.Option(help="How many seeds of training. [3]")]


def compare(
    recipe: o.RecipeName,
    criteria: Criteria = None,
    sizes: Annotated[str | None, typer.Option(help="Numbers of layers, separated by commas. [half of them]")] = None,
    seeds: Seeds = None,
    methods: Annotated[str | None, typer.Option(help="Adapter methods, separated by commas. [the recipe's]")] = None,
    tune: Annotated[
        str | None, typer.Option(help="A learning rate for each number of layers (size) or each row (each). [size]")
    ] = None,
    race: Annotated[
        bool, typer.Option("--race", help="Train no further seeds of a row whose verdict is settled. [compare.race]")
    ] = False,
    jobs: o.Jobs = 1,
    threads: o.Threads = None,
    on: o.On = None,
    gpus: o.Gpus = None,
    assignments: o.Sets = None,
    output: o.GridOutput = None,
    smoke: o.Smoke = False,
    dry_run: o.Forecast = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Train every criterion's layers alike, and say what tells them apart. What is finished is not done again."""
    from layersift.experiment.compare import compare as run_comparison
    from layersift.report.tables import caption, headings, verdict_first
    from layersift.report.write import write_comparison

    from .console import Console, next_step

    console = Console(quiet, json)
    given = {"criteria": criteria, "sizes": sizes, "seeds": seeds, "methods": methods}
    sets = [*(assignments or []), *([f"compare.tune={tune}"] if tune is not None else [])]
    sets += ["compare.race=true"] if race else []
    resolved = grid_recipe(recipe, sets, output, smoke, given)
    if dry_run:
        from layersift.experiment.compare import forecast_comparison

        o.foretell(forecast_comparison(resolved, console), resolved, console)
        return
    comparison = run_comparison(resolved, o.carried_out_by(jobs, on, threads, gpus), console)
    written = write_comparison(comparison, Path(resolved.output))
    for said in verdict_first(comparison):
        console.say(said)
    for title, rows in headings(comparison):
        console.say(f"\n{title}")
        console.table(rows, written.with_name("tables.md"))
    console.say(caption(comparison))
    console.say(next_step("look at it in a browser", written))
    console.result(comparison.to_json())


def grid_recipe(
    name: str,
    assignments: list[str] | None,
    output: Path | None,
    smoke: bool,
    given: dict[str, str | int | None],
) -> Recipe:
    """The recipe with the flags' grid over its own."""
    from layersift.config.recipe import find_recipe, read_recipe
    from layersift.experiment.smoke import INPUTS, shrink

    sets = list(assignments or [])
    for key, value in given.items():
        if value is None:
            continue
        if value == "":
            raise LayersiftError(f"--{key} is empty; leave it away for its default")
        listed = f"[{value}]" if isinstance(value, str) else value
        sets.append(f"compare.{key}={listed}")
    resolved = read_recipe(find_recipe(name), sets, str(output) if output else None)
    return shrink(resolved, Path(f"{resolved.output}{INPUTS}")) if smoke else resolved
