"""`layersift oracle`: every subset of layers, and where the criteria's choices stand among them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .compare import Criteria, GridOutput, Jobs, RecipeName, Seeds, Sets, Smoke, grid_recipe


def oracle(
    recipe: RecipeName,
    size: Annotated[int | None, typer.Option(help="Number of layers. [half of them]")] = None,
    sample: Annotated[
        int | None, typer.Option(help="Train so many subsets, drawn by the seed, instead of all.")
    ] = None,
    criteria: Criteria = None,
    seeds: Seeds = None,
    jobs: Jobs = 1,
    assignments: Sets = None,
    output: GridOutput = None,
    smoke: Smoke = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Train every subset of a size and rank each criterion's choice among them. For models small enough."""
    from layersift.compare.dossier import write_oracle
    from layersift.compare.oracle import oracle as run_oracle
    from layersift.compare.page import require_charts
    from layersift.compare.tables import oracle_caption, oracle_rows

    from .screen import Screen

    screen = Screen(quiet, json)
    require_charts()
    resolved = grid_recipe(recipe, assignments, output, smoke, {"criteria": criteria, "seeds": seeds})
    found = run_oracle(resolved, size, sample, jobs, screen)
    written = write_oracle(found, Path(resolved.output))
    screen.table(oracle_rows(found))
    screen.say(oracle_caption(found))
    screen.say(f"report: {written}")
    screen.result(found.to_json())
