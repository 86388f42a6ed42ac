"""Comparisons of recipes whose trainings may take days: all of one, or what is finished of it; and their tables."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from layersift.commands.console import Console
from layersift.config.recipe import Recipe
from layersift.experiment.cell import Job
from layersift.experiment.choices import choices_of, with_rates
from layersift.experiment.compare import Comparison, compare
from layersift.experiment.costs import Costs
from layersift.experiment.grid import finished, open_grid, run_cells
from layersift.experiment.prepare import checked, scoring_of, sizes_of
from layersift.records.runs import Cell, Result
from layersift.report.tables import caption, headings
from trained import row_name


def only_finished(
    recipe: Recipe, jobs: Sequence[Job], place: Path, *_: object
) -> tuple[dict[Cell, Result], dict[Cell, str]]:
    """In place of training: what is finished, and of the others that they are not."""
    found = finished(place, [job.cell for job in jobs], recipe.train)
    return found, {job.cell: "not trained yet" for job in jobs if job.cell not in found}


def train_all(
    recipe: Recipe, cells: Sequence[Cell], place: Path, jobs: int, console: Console, label: str
) -> dict[Cell, Result]:
    """Results of the cells; ends the script where one failed."""
    done, failed = run_cells(recipe, list(map(Job, cells)), place, jobs, console, label)
    if failed:
        raise SystemExit(next(iter(failed.values())))
    return done


def train_rows(recipe: Recipe, names: Sequence[str], of: Sequence[int] | None, jobs: int, console: Console) -> None:
    """Train some rows of a comparison, of some numbers of layers or all, for the recipe's epochs, seed after seed."""
    _, layers, prepared = checked(recipe, console)
    sizes, seeds = sizes_of(recipe, layers), recipe.seeds
    with open_grid(recipe) as output:
        scoring = scoring_of(recipe, prepared, sizes, output, console)
        choices = choices_of(recipe, scoring, sizes, [recipe.train.method], Costs(recipe, prepared))
        choices, _ = with_rates(recipe, choices, layers, scoring.kind, jobs, console)
        named = [choice for choice in choices if choice.name in names and choice.budget is None]
        some = [choice for choice in named if of is None or choice.size in of]
        wanted = [Job(cell) for seed in seeds for choice in some for cell in choice.cells([seed])]
        run_cells(recipe, wanted, output, jobs, console, f"training {', '.join(names)}")


def comparison_of(recipe: Recipe, jobs: int, console: Console, finished_only: bool) -> Comparison:
    """What the recipe asks for, or of that the rows whose every training is finished."""
    if not finished_only:
        return compare(recipe, jobs, console)
    with ExitStack() as patches:
        for place in ("layersift.experiment.compare.run_cells", "layersift.experiment.rates.run_cells"):
            patches.enter_context(patch(place, only_finished))
        comparison = compare(recipe, jobs, console)
    whole = tuple(row for row in comparison.rows if row.score is not None and not row.short)
    lacking: dict[int, list[str]] = {}
    for row in comparison.rows:
        if row not in whole:
            lacking.setdefault(row.choice.size, []).append(row_name(row.choice))
    said = "; ".join(f"of {size} layers: {'; '.join(names)}" for size, names in lacking.items())
    notices = (*comparison.notices, f"not trained yet: {said}") if said else comparison.notices
    return replace(comparison, rows=whole, notices=notices)


def tell(comparison: Comparison, console: Console) -> None:
    """Print a comparison's tables."""
    for title, rows in headings(comparison):
        console.say(f"\n{title}")
        console.table(rows)
    console.say(caption(comparison))
