"""`layersift compare`: every criterion's layers trained alike; how many trainings that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from layersift.config.fields import json_values
from layersift.config.recipe import Recipe
from layersift.config.train import AUTO, CONVERGING, STATIC
from layersift.config.variants import CompareSettings, sweep_variants
from layersift.errors import LayersiftError
from layersift.evaluation.metrics import Majority
from layersift.experiment.cell import Job, Jobs
from layersift.experiment.choices import Choice, choices_of, draw_notices, masks_of, with_flops, with_rates
from layersift.experiment.costs import Costs
from layersift.experiment.grid import contents_of, open_grid, require_jobs, run_cells
from layersift.experiment.judge import FAILED, Curves, Judgement, Trained, curves_of, judge, nothing_learned
from layersift.experiment.oracle import subsets_of
from layersift.experiment.prepare import Scoring, checked, scoring_of, sizes_of
from layersift.experiment.race import race
from layersift.experiment.rates import MOST_SPENT, Rate, tuning_masks
from layersift.experiment.run import affordable_seeds, parse_ranks, rank_choices, without_tuning
from layersift.progress import Reporter
from layersift.provenance import made_by
from layersift.records.runs import Cell, Result


@dataclass(frozen=True)
class Forecast:
    """What an experiment would take."""

    trainings: int  # that are judged on the test rows
    tuning: int  # to choose learning rates; more where the best lies at an edge
    flops: float | None  # of all training steps; None where they cannot be planned
    searched: int = 0  # rates that are searched for (auto), each for at most 15 % of a training
    at_most: bool = False  # a race may take fewer

    def __str__(self) -> str:
        tuned = f" and at least {self.tuning} to choose learning rates" if self.tuning else ""
        cost = "their FLOPs cannot be planned" if self.flops is None else f"{self.flops:.3g} FLOPs of training steps"
        searches = (
            f"; {self.searched} searches for a rate, each at most {MOST_SPENT:.0%} of a training"
            if self.searched
            else ""
        )
        return f"{'at most ' if self.at_most else ''}{self.trainings} trainings{tuned}; {cost}{searches}"

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
    return replace(_forecast(recipe, costs, cells, tuned), at_most=recipe.compare.race)


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
        LayersiftError: see :func:`layersift.experiment.run.sweep_ranks`.
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
    searched = 0 if recipe.train.learning_rate != AUTO else len(tuned or {(c.mask, c.train) for c in distinct})
    if any(costs.why_not(cell.train.method) is not None for cell in distinct):
        return Forecast(len(distinct), tuning, None, searched)

    def flops_of(cells: Sequence[Cell]) -> float:
        # Where layers settle is not known before: as if none did.
        planned = [c.with_settings(strategy=STATIC) if c.train.strategy.startswith(CONVERGING) else c for c in cells]
        return recipe.train.gradient_accumulation * sum(costs.plan(cell).flops for cell in planned)

    flops = flops_of(distinct) + (rates * flops_of(tuned) if tuning else 0.0)
    return Forecast(len(distinct), tuning, flops, searched)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Args:
        recipe: what was compared.
        scoring: every criterion's scores, and the layers that each selects.
        metric: name of the score.
        seeds: of the trainings.
        rows: one a choice of layers, with its score, interval and verdict.
        curves: scores during the trainings.
        rates: learning rates by what they are for.
        contents: fingerprints of model and data.
        not_planned: why a method has no rows of equal cost, by method.
        made: the versions, devices and threads that its trainings record.
        notices: what was cut or dropped of the rows.
        majority: accuracy of the most common class; None where there are no classes.
        nothing_learned: why nothing is ranked, where no row beats what needs no training.

    Examples:
        >>> from pathlib import Path
        >>> from layersift import compare, read_recipe
        >>> comparison = compare(read_recipe(Path("recipe.yaml"), output="compared"))
        >>> print(comparison.majority)
        always '1', the most common class in training: accuracy 0.4000
        >>> comparison.metric, comparison.num_layers
        ('accuracy', 4)
    """

    recipe: Recipe
    scoring: Scoring
    metric: str
    seeds: tuple[int, ...]
    rows: tuple[Judgement, ...]
    curves: Curves
    rates: Mapping[str, Rate]
    contents: Mapping[str, Any]
    not_planned: Mapping[str, str]
    made: tuple[Mapping[str, Any], ...]
    notices: tuple[str, ...] = ()
    majority: Majority | None = None
    nothing_learned: str | None = None

    @property
    def num_layers(self) -> int:
        """M."""
        return self.scoring.stack.num_layers

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        scoring = json_values(self.scoring)
        layers = [list(scored.layers) for scored in self.scoring.scored]
        scored = [values | {"layers": chosen} for values, chosen in zip(scoring["scored"], layers, strict=True)]
        return {
            "schema_version": 2,
            "recipe": self.recipe.to_json(),
            **made_by(),
            **{name: scoring[name] for name in ("kind", "positions", "matrix", "left_out", "data", "samples")},
            "metric": self.metric,
            "num_layers": self.num_layers,
            "seeds": list(self.seeds),
            "contents": dict(self.contents),
            "not_planned": dict(self.not_planned),
            "made": list(self.made),
            "notices": list(self.notices),
            "majority": json_values(self.majority),
            "nothing_learned": self.nothing_learned,
            "rates": json_values(dict(self.rates)),
            "scored": scored,
            "rows": json_values(self.rows),
            "curves": json_values(self.curves),
        }


def compare(recipe: Recipe, jobs: Jobs = 1, reporter: Reporter | None = None) -> Comparison:
    """Score, train and judge what a recipe's ``compare`` section names; finished trainings are not repeated.

    Writes, under the recipe's output: grid.json, cells/, scores.json. Trainings run in processes of their own, so a
    script calls it below ``if __name__ == "__main__":``.

    Args:
        recipe: model, data, settings, and in its ``compare`` section the criteria, sizes and seeds.
        jobs: how many trainings run at a time, each in a process of its own.
        reporter: is told of the progress; None: nobody is.

    Returns:
        A row for each choice of layers, with its score and verdict.

    Raises:
        LayersiftError: the data, the model, a setting or the output cannot be used.

    Examples:
        >>> from pathlib import Path
        >>> from layersift import compare, read_recipe
        >>> comparison = compare(read_recipe(Path("recipe.yaml"), output="compared"))
        >>> [row.choice.name for row in comparison.rows][:3]
        ['cka', 'last', 'random']
    """
    reporter = reporter or Reporter()
    require_jobs(jobs)
    recipe, layers, prepared = checked(recipe, reporter)
    sizes = sizes_of(recipe, layers)
    methods = recipe.compare.methods or [recipe.train.method]
    seeds = recipe.seeds
    with open_grid(recipe, prepared=prepared) as output:
        scoring = scoring_of(recipe, prepared, sizes, output, reporter)
        costs = Costs(recipe, prepared)
        choices = choices_of(recipe, scoring, sizes, methods, costs)
        choices, rates = with_rates(recipe, choices, layers, scoring.kind, jobs, reporter)

        def train(some: Sequence[Choice], of: Sequence[int]) -> tuple[dict[Cell, Result], dict[Cell, str]]:
            wanted = [Job(cell, watched=True) for choice in some for cell in choice.cells(of)]
            return run_cells(recipe, wanted, output, jobs, reporter, "training and judging")

        if recipe.compare.race:
            trained = race(choices, seeds, lambda some, seed: train(some, [seed]))
        else:
            trained = Trained(seeds, *train(choices, seeds))
        contents = contents_of(output)
    if not trained.results:
        raise LayersiftError(f"no training succeeded; the first one: {next(iter(trained.failures.values()))}")
    choices = with_flops(recipe, choices, trained.results, costs)
    rows, nothing = judge(choices, trained), nothing_learned(choices, trained, prepared.majority)
    if nothing is not None:
        rows = tuple(row if row.same_as or row.verdict == FAILED else replace(row, verdict="") for row in rows)
    return Comparison(
        recipe=recipe,
        scoring=scoring,
        metric=trained.metric,
        seeds=trained.seeds,
        rows=rows,
        curves=curves_of(choices, trained, costs),
        rates=rates,
        contents=contents,
        not_planned={method: why for method in methods if (why := costs.why_not(method)) is not None},
        made=trained.environments,
        notices=(*prepared.notices, *draw_notices(choices, recipe.compare.random)),
        majority=prepared.majority,
        nothing_learned=nothing,
    )
