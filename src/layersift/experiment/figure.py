"""Several recipes carried out for one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from layersift.config.figure import FigureRecipe
from layersift.config.recipe import read_recipe
from layersift.config.shipped import find_recipe
from layersift.experiment.run import Outcome, run
from layersift.experiment.smoke import INPUTS, shrink
from layersift.progress import Reporter


def run_figure(
    figure: FigureRecipe,
    assignments: Sequence[str] = (),
    smoke: bool = False,
    jobs: int = 1,
    reporter: Reporter | None = None,
) -> dict[str, Outcome]:
    """Carry out a figure's recipes, under its output by their names.

    Raises:
        LayersiftError: see :func:`layersift.experiment.run.run`.
    """
    reporter = reporter or Reporter()
    recipes = {name: read_recipe(find_recipe(name), list(assignments)) for name in figure.recipes}
    output, outcomes = figure_output(figure, smoke), {}
    for name, given in recipes.items():
        reporter.say(name)
        recipe = replace(given, arms=figure.arms, output=str(output / name))
        if smoke:
            recipe = replace(shrink(recipe, output / f"{name}{INPUTS}"), output=str(output / name))
        outcomes[name] = run(recipe, jobs, reporter)
    return outcomes


def figure_output(figure: FigureRecipe, smoke: bool) -> Path:
    """Where a figure is kept; a smoke run's beside it."""
    return Path(f"{figure.output}-smoke" if smoke else figure.output)
