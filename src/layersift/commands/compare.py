"""`layersift compare`: criteria side by side, trained alike on the user's own data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o

if TYPE_CHECKING:
    from layersift.compare.recipe import Recipe

Criteria = Annotated[str | None, typer.Option(help="Names from `layersift criteria`, separated by commas.")]
Seeds = Annotated[int | None, typer.Option(help="How many seeds of training. [3]")]
Jobs = Annotated[int, typer.Option(help="Trainings at the same time, each in its own process.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="key=value or section.key=value, over what the recipe says.")
]
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file (docs/compare.md), or a name from `layersift recipes`.")
]
GridOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="New, or of trainings by the same recipe, which are not repeated.")
]
Smoke = Annotated[bool, typer.Option("--smoke", help="Only try it out: tiny model, made-up rows, a few steps.")]


def compare(
    recipe: RecipeName,
    criteria: Criteria = None,
    sizes: Annotated[str | None, typer.Option(help="Numbers of layers, separated by commas. [half of them]")] = None,
    seeds: Seeds = None,
    methods: Annotated[str | None, typer.Option(help="Adapter methods, separated by commas. [the recipe's]")] = None,
    jobs: Jobs = 1,
    assignments: Sets = None,
    output: GridOutput = None,
    smoke: Smoke = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Train every criterion's layers alike, and say what tells them apart. What is finished is not done again."""
    from layersift.compare.contest import compare as run_contest
    from layersift.compare.dossier import write_contest
    from layersift.compare.page import require_charts
    from layersift.compare.tables import caption, headings

    from .screen import Screen

    screen = Screen(quiet, json)
    require_charts()
    given = {"criteria": criteria, "sizes": sizes, "seeds": seeds, "methods": methods}
    resolved = grid_recipe(recipe, assignments, output, smoke, given)
    contest = run_contest(resolved, jobs, screen)
    written = write_contest(contest, Path(resolved.output))
    for title, rows in headings(contest):
        screen.say(f"\n{title}")
        screen.table(rows)
    screen.say(caption(contest))
    screen.say(f"report: {written}")
    screen.result(contest.to_json())


def grid_recipe(
    name: str, assignments: list[str] | None, output: Path | None, smoke: bool, given: dict[str, str | int | None]
) -> Recipe:
    """The recipe with the flags' grid over its own."""
    from dataclasses import replace

    from layersift.compare import shelf
    from layersift.compare.recipe import read_recipe
    from layersift.compare.smoke import shrink

    sets = list(assignments or [])
    for key, value in given.items():
        if value is None:
            continue
        listed = f"[{value}]" if isinstance(value, str) else value
        sets.append(f"compare.{key}={listed}")
    read = read_recipe(shelf.find(name), sets, str(output) if output else None)
    resolved = replace(read, output=str(output) if output else f"{read.output}-compare")
    return shrink(resolved, Path(f"{resolved.output}-smoke-inputs")) if smoke else resolved
