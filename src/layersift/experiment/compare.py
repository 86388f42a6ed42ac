"""`layersift compare`: every criterion's layers trained alike, and what tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from layersift.config.fields import json_values
from layersift.config.recipe import Recipe
from layersift.errors import LayersiftError
from layersift.evaluation.classes import Majority
from layersift.experiment.cell import Job, Jobs
from layersift.experiment.choices import choices_of, draw_notices, with_flops, with_rates
from layersift.experiment.costs import Costs
from layersift.experiment.curves import Curves, curves_of
from layersift.experiment.grid import contents_of, open_grid, require_jobs, run_cells
from layersift.experiment.judge import FAILED, Judgement, Trained, judge, nothing_learned
from layersift.experiment.prepare import checked
from layersift.experiment.rates import Rate
from layersift.experiment.scoring import Scoring, scoring_of, sizes_of
from layersift.progress import Reporter
from layersift.provenance import made_by


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    recipe: Recipe
    scoring: Scoring
    metric: str
    seeds: tuple[int, ...]
    rows: tuple[Judgement, ...]
    curves: Curves
    rates: Mapping[str, Rate]  # learning rates by what they are for
    contents: Mapping[str, Any]  # fingerprints of model and data
    not_planned: Mapping[str, str]  # by method, why there are no rows of equal cost
    made: tuple[Mapping[str, Any], ...]  # the different versions, devices and threads that its cells record
    notices: tuple[str, ...] = ()  # what was cut or left out of the rows
    majority: Majority | None = None  # of a classification
    nothing_learned: str | None = None  # that no row beats what needs no training; then nothing is ranked

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
    """Score, train and judge; what is finished is not done again.

    Writes, under the recipe's output: grid.json, cells/, scores.json.

    Raises:
        LayersiftError: the data, the model, a setting or the output cannot be used.
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
        wanted = [Job(cell, watched=True) for choice in choices for cell in choice.cells(seeds)]
        results, failures = run_cells(recipe, wanted, output, jobs, reporter, "training and judging")
        contents = contents_of(output)
    if not results:
        raise LayersiftError(f"no training succeeded; the first one: {next(iter(failures.values()))}")
    choices, trained = with_flops(recipe, choices, results, costs), Trained(seeds, results, failures)
    rows, nothing = judge(choices, trained), nothing_learned(choices, trained, prepared.majority)
    if nothing is not None:
        rows = tuple(row if row.same_as or row.verdict == FAILED else replace(row, verdict="") for row in rows)
    return Comparison(
        recipe=recipe,
        scoring=scoring,
        metric=trained.metric,
        seeds=seeds,
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
