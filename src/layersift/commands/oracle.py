"""`layersift oracle`: every subset of layers, and where the criteria's choices stand among them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .compare import Criteria, Seeds, grid_recipe


def oracle(
    recipe: o.RecipeName,
    size: Annotated[int | None, typer.Option(help="Number of layers. [half of them]")] = None,
    sample: Annotated[
        int | None, typer.Option(help="Train so many subsets, drawn by the seed, instead of all.")
    ] = None,
    criteria: Criteria = None,
    seeds: Seeds = None,
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
    """Train every subset of a size and rank each criterion's choice among them. For models small enough."""
    from layersift.experiment.oracle import oracle as run_oracle
    from layersift.report.tables import oracle_caption, oracle_rows
    from layersift.report.write import write_oracle

    from .console import Console, next_step

    console = Console(quiet, json)
    resolved = grid_recipe(recipe, assignments, output, smoke, {"criteria": criteria, "seeds": seeds})
    if dry_run:
        from layersift.experiment.compare import forecast_oracle

        o.foretell(forecast_oracle(resolved, size, sample, console), resolved, console)
        return
    by = o.carried_out_by(jobs, on, threads, gpus)
    outcome = run_oracle(resolved, size, sample, by, console)
    written = write_oracle(outcome, Path(resolved.output))
    if outcome.placed:
        console.table(oracle_rows(outcome), written.with_name("oracle.md"))
    console.say(oracle_caption(outcome))
    console.say(next_step("look at it in a browser", written))
    console.result(outcome.to_json())
