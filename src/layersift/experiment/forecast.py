"""How many trainings an experiment would take, and how many FLOPs, before any of them is begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from layersift.config.recipe import Recipe
from layersift.config.train import CONVERGING, STATIC
from layersift.config.variants import CompareSettings, sweep_variants
from layersift.experiment.choices import choices_of, masks_of
from layersift.experiment.costs import Costs
from layersift.experiment.oracle import subsets_of
from layersift.experiment.prepare import checked
from layersift.experiment.rank_sweep import affordable_seeds, parse_ranks, rank_choices, without_tuning
from layersift.experiment.rates import tuning_masks
from layersift.experiment.scoring import scoring_of, sizes_of
from layersift.progress import Reporter
from layersift.records.result import Cell


@dataclass(frozen=True)
class Forecast:
    """What an experiment would take."""

    trainings: int  # that are judged on the test rows
    tuning: int  # to choose learning rates; more where the best lies at an edge
    flops: float | None  # of all training steps; None where they cannot be planned

    def __str__(self) -> str:
        tuned = f" and at least {self.tuning} to choose learning rates" if self.tuning else ""
        cost = "their FLOPs cannot be planned" if self.flops is None else f"{self.flops:.3g} FLOPs of training steps"
        return f"{self.trainings} trainings{tuned}; {cost}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def forecast_comparison(recipe: Recipe, reporter: Reporter) -> Forecast:
    """Of a `compare`. The criteria are asked, since those that choose the same layers are trained once.

    Raises:
        LayersiftError: see :func:`layersift.experiment.compare.compare`.
    """
    recipe, layers, prepared = checked(recipe, reporter)
    sizes, methods = sizes_of(recipe, layers), recipe.compare.methods or [recipe.train.method]
    with TemporaryDirectory() as place:
        scoring = scoring_of(recipe, prepared, sizes, Path(place), reporter)
    costs = Costs(recipe, prepared)
    choices = choices_of(recipe, scoring, sizes, methods, costs)
    cells = [cell for choice in choices for cell in choice.cells(recipe.seeds) if cell.mask]
    trained = [choice for choice in choices if choice.trained]
    if recipe.compare.tune == "each":
        own = [c.variants[0].cell(recipe.seed, "validation") for c in trained]
        tuned = list(dict.fromkeys(cell.with_settings(epochs=recipe.train.epochs) for cell in own))
    else:
        counts = {(c.train.method, c.masks[0].count("1")) for c in trained}
        masks = tuning_masks([n for _, n in counts], layers, recipe.seed, masks_of(trained))
        tuned = [_cell(recipe, masks[n], recipe.seed, method) for method, n in counts]
    return _forecast(recipe, costs, cells, tuned)


def forecast_oracle(recipe: Recipe, size: int | None, sample: int | None, reporter: Reporter) -> Forecast:
    """Of an `oracle`; the criteria's own choices are among the subsets, or come on top of a sample.

    Raises:
        LayersiftError: see :func:`layersift.experiment.oracle.oracle`.
    """
    recipe, layers, prepared = checked(recipe, reporter)
    size = sizes_of(recipe, layers)[0] if size is None else size
    method = (recipe.compare.methods or [recipe.train.method])[0]
    masks = [*subsets_of(layers, size, sample, recipe.seed), "1" * layers]
    cells = [_cell(recipe, mask, seed, method) for mask in masks for seed in recipe.seeds]
    tuned = [
        _cell(recipe, mask, recipe.seed, method) for mask in tuning_masks([size, layers], layers, recipe.seed).values()
    ]
    return _forecast(recipe, Costs(recipe, prepared), cells, tuned)


def forecast_sweep(recipe: Recipe, sizes: str | None, reporter: Reporter) -> Forecast:
    """Of a `sweep`: layers as dear as the last ones, since which are chosen is not known yet.

    Raises:
        LayersiftError: see :func:`layersift.experiment.run.sweep`.
    """
    recipe, layers, prepared = checked(replace(recipe, compare=CompareSettings()), reporter)
    counts = [
        layers if variant == "all" else int(variant.removeprefix("top-")) for variant in sweep_variants(layers, sizes)
    ]
    masks = ["0" * (layers - n) + "1" * n for n in counts]
    cells = [_cell(recipe, mask, recipe.seed, recipe.train.method) for mask in masks]
    return _forecast(recipe, Costs(recipe, prepared), cells, [])


def forecast_rank_sweep(recipe: Recipe, ranks: str, budget: float | None, reporter: Reporter) -> Forecast:
    """Of a `sweep --ranks`.

    Raises:
        LayersiftError: see :func:`layersift.experiment.rank_sweep.sweep_ranks`.
    """
    recipe, layers, prepared = checked(without_tuning(recipe), reporter)
    choices, costs = rank_choices(recipe, parse_ranks(ranks), layers, prepared), Costs(recipe, prepared)
    seeds = recipe.seeds if budget is None else affordable_seeds(recipe, choices, costs, budget)
    return _forecast(recipe, costs, [cell for choice in choices if choice.trained for cell in choice.cells(seeds)], [])


def _cell(recipe: Recipe, mask: str, seed: int, method: str) -> Cell:
    return Cell(mask, seed, replace(recipe.train, method=method))


def _forecast(recipe: Recipe, costs: Costs, cells: Sequence[Cell], tuned: Sequence[Cell]) -> Forecast:
    rates = len(recipe.compare.learning_rates)
    tuning = rates * len(tuned) if rates > 1 else 0
    distinct = list(dict.fromkeys(cells))
    if any(costs.why_not(cell.train.method) is not None for cell in distinct):
        return Forecast(len(distinct), tuning, None)

    def flops_of(cells: Sequence[Cell]) -> float:
        # Where layers settle is not known before: as if none did.
        planned = [c.with_settings(strategy=STATIC) if c.train.strategy.startswith(CONVERGING) else c for c in cells]
        return recipe.train.gradient_accumulation * sum(costs.plan(cell).flops for cell in planned)

    return Forecast(len(distinct), tuning, flops_of(distinct) + (rates * flops_of(tuned) if tuning else 0.0))
