"""`layersift sweep`: how many layers are enough, or which rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .run import require_variants, show

if TYPE_CHECKING:
    from layersift.config.recipe import Recipe
    from layersift.experiment.cell import Jobs

    from .console import Console


def sweep(
    recipe: o.RecipeName,
    sizes: Annotated[
        str | None, typer.Option(help="Numbers of layers, separated by commas. [1, 2, 4, ..., half, all]")
    ] = None,
    ranks: Annotated[
        str | None, typer.Option(help="Instead: ranks of the adapters on all layers, as in 2,4,8,16.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=1000, help="Of --ranks: seeds. [compare.seeds]")] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Of --ranks: fewer seeds, until all takes at most so many trainings of all layers."),
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
    """Train the recipe's adapters on the N most important layers for several N, all from one scoring pass.

    With --ranks train all layers at several ranks, each at the learning rate of its rank, with several seeds.
    """
    from layersift.experiment.run import sweep as run_sweep
    from layersift.report.write import write_figure

    from .compare import grid_recipe
    from .console import Console

    console = Console(quiet, json)
    resolved = grid_recipe(recipe, assignments, output, smoke, {"seeds": seeds})
    by = jobs if dry_run else o.carried_out_by(jobs, on, threads, gpus)
    if ranks is not None:
        _over_ranks(resolved, ranks, budget, by, dry_run, console)
        return
    if dry_run:
        from layersift.experiment.compare import forecast_sweep

        o.foretell(forecast_sweep(resolved, sizes, console), resolved, console)
        return
    outcome = run_sweep(resolved, sizes, by, console)
    place = Path(outcome.recipe.output)
    write_figure("sweep", {place.name: outcome}, place)
    console.say(f"picture: {place}/figure.png")
    show(outcome, console)


def _over_ranks(recipe: Recipe, ranks: str, budget: float | None, by: Jobs, dry_run: bool, console: Console) -> None:
    """Sweep over ranks, or say what that would take."""
    from layersift.experiment.run import sweep_ranks
    from layersift.report.ranks import rank_rows, rank_words, write_rank_sweep

    if dry_run:
        from layersift.experiment.compare import forecast_rank_sweep

        o.foretell(forecast_rank_sweep(recipe, ranks, budget, console), recipe, console)
        return
    swept = sweep_ranks(recipe, ranks, budget, by, console)
    place = Path(swept.outcome.recipe.output)
    write_rank_sweep(swept, place)
    console.table(rank_rows(swept))
    for line in rank_words(swept):
        console.say(line)
    console.say(f"picture: {place}/figure.png")
    console.say(f"written to {place}")
    console.result(swept.to_json())
    require_variants(swept.outcome)
