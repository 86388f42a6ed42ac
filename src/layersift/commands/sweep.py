"""`layersift sweep`: how many layers are enough."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .run import show


def sweep(
    recipe: o.RecipeName,
    sizes: Annotated[
        str | None, typer.Option(help="Numbers of layers, separated by commas. [1, 2, 4, ..., half, all]")
    ] = None,
    assignments: o.Sets = None,
    output: o.GridOutput = None,
    jobs: o.Jobs = 1,
    threads: o.Threads = None,
    on: o.On = None,
    gpus: o.Gpus = None,
    smoke: o.Smoke = False,
    dry_run: o.Forecast = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Train the recipe's adapters on the N most important layers for several N, all from one scoring pass."""
    from layersift.experiment.run import sweep as run_sweep
    from layersift.report.write import write_figure

    from .compare import grid_recipe
    from .console import Console

    console = Console(quiet, json)
    resolved = grid_recipe(recipe, assignments, output, smoke, {})
    if dry_run:
        from layersift.experiment.forecast import forecast_sweep

        o.foretell(forecast_sweep(resolved, sizes, console), resolved, console)
        return
    outcome = run_sweep(resolved, sizes, o.carried_out_by(jobs, on, threads, gpus), console)
    place = Path(outcome.recipe.output)
    write_figure("sweep", {place.name: outcome}, place)
    console.say(f"picture: {place}/figure.png")
    show(outcome, console)
