"""`layersift sweep --ranks`: the same layers at several ranks, with several seeds, and which rank is enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from layersift.config.defaults import hidden_size
from layersift.config.fields import json_values
from layersift.config.recipe import Recipe
from layersift.config.variants import BASE, CompareSettings
from layersift.errors import LayersiftError
from layersift.experiment.cell import Jobs
from layersift.experiment.choices import Choice, at_rank, has_one_rank
from layersift.experiment.costs import Costs
from layersift.experiment.grid import open_grid, require_jobs
from layersift.experiment.judge import Trained, runs_of
from layersift.experiment.prepare import Prepared, checked
from layersift.experiment.rates import rate_of
from layersift.experiment.run import Outcome, train_choices
from layersift.models.load import load_config
from layersift.progress import Reporter
from layersift.statistics.intervals import Interval, difference

FEWEST, MOST_RANK = 2, 10**5
MARGIN = 0.01  # of the score: a point of accuracy, 0.01 nats; a rank that loses less counts as good enough


@dataclass(frozen=True)
class RankSweep:
    """What a sweep over ranks found."""

    outcome: Outcome  # a row a rank, and the base model
    seeds: tuple[int, ...]
    best: str | None  # the row of the best mean score; None where nothing was learned
    from_best: Mapping[str, Interval | None]  # of each other row
    enough: int | None  # the lowest rank that loses no more than the margin to the best one, by its whole interval
    open_: tuple[int, ...] = ()  # lower ones of which these trainings cannot say whether they lose more

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = json_values(
            {
                "seeds": self.seeds,
                "best": self.best,
                "from_best": dict(self.from_best),
                "enough": self.enough,
                "inconclusive": self.open_,
            }
        )
        return self.outcome.to_json() | values


def parse_ranks(text: str) -> list[int]:
    """The ranks that a text names, ascending.

    Raises:
        LayersiftError: fewer than two, or something else than numbers between commas.
    """
    parts = [part.strip() for part in text.split(",")]
    ranks = sorted({int(part) for part in parts if part.isdecimal() and len(part) <= 6 and 0 < int(part) <= MOST_RANK})
    if len(ranks) < FEWEST or len(ranks) != len(parts):
        raise LayersiftError(f"--ranks {text}: expected at least two different ranks, as in 2,4,8,16")
    return ranks


def rank_choices(recipe: Recipe, ranks: list[int], num_layers: int, prepared: Prepared) -> list[Choice]:
    """All layers at each rank, by alpha over rank as in the recipe and at the rate that the rule has for the rank.

    Raises:
        LayersiftError: the recipe's adapters have no one rank.
    """
    if not has_one_rank(recipe.train):
        raise LayersiftError("--ranks: the recipe's adapters have no rank, or a rank of their own for some modules")
    width, kind = hidden_size(load_config(recipe.model)), prepared.encoder.kind
    choices = []
    for rank in ranks:
        choice = Choice.of(f"rank-{rank}", 0, ["1" * num_layers], at_rank(recipe.train, rank))
        choices.append(choice.with_settings(learning_rate=rate_of(recipe, choice.variants[0], kind, width)))
    return [*choices, Choice.of(BASE, 0, [""], recipe.train)]


def affordable_seeds(recipe: Recipe, choices: list[Choice], costs: Costs, budget: float) -> tuple[int, ...]:
    """As many of the recipe's seeds as a budget allows, in trainings of all layers by the recipe.

    Raises:
        LayersiftError: not one; the message names what that takes.
    """
    if (why := costs.why_not(recipe.train.method)) is not None:
        raise LayersiftError(f"--budget: {why}; leave it away")
    each = sum(costs.share(choice.variants[0].cell(recipe.seed)) for choice in choices if choice.trained)
    count = math.floor(budget / each + 1e-9)
    if not count:
        enough = math.ceil(100 * each) / 100
        raise LayersiftError(f"--budget {budget:g}: one seed of these ranks takes {enough:g} trainings of all layers")
    return recipe.seeds[:count]


def sweep_ranks(
    recipe: Recipe, ranks: str, budget: float | None = None, jobs: Jobs = 1, reporter: Reporter | None = None
) -> RankSweep:
    """Train all layers at several ranks with the recipe's seeds, and judge them.

    Args:
        budget: so many trainings of all layers by the recipe, in FLOPs, are not exceeded: fewer seeds are trained.

    Raises:
        LayersiftError: see :func:`layersift.experiment.run.run`; ranks that are none; a budget for no seed.
    """
    reporter, wanted = reporter or Reporter(), parse_ranks(ranks)
    require_jobs(jobs)
    recipe, layers, prepared = checked(without_tuning(recipe), reporter)
    choices, seeds = rank_choices(recipe, wanted, layers, prepared), recipe.seeds
    if budget is not None:
        seeds = affordable_seeds(recipe, choices, Costs(recipe, prepared), budget)
        if len(seeds) < len(recipe.seeds):
            reporter.say(f"{len(seeds)} of {len(recipe.seeds)} seeds are within the budget")
    with open_grid(recipe, "rank sweep", prepared):
        return _ranked(train_choices(recipe, prepared, choices, seeds, jobs, reporter), choices, seeds)


def without_tuning(recipe: Recipe) -> Recipe:
    """The recipe without rates to choose among: no rows are held back for that."""
    return replace(recipe, compare=CompareSettings(seeds=recipe.compare.seeds))


def _ranked(outcome: Outcome, choices: list[Choice], seeds: tuple[int, ...]) -> RankSweep:
    """Which rank scores best, how far the others are from it, and the lowest that is as good within the margin."""
    results = {result.cell: result for done in outcome.variants.values() for result in done}
    trained = Trained(seeds, results, {})
    scores = {row.choice: row.score.value for row in outcome.rows if row.score is not None and row.choice.trained}
    if outcome.nothing_learned is not None or not scores:
        return RankSweep(outcome, seeds, None, {}, None)
    sign = trained.unit.sign
    best = max(scores, key=lambda choice: sign * scores[choice])
    runs = runs_of(best, trained)
    apart = {
        choice.name: difference(runs_of(choice, trained), runs)
        for choice in choices
        if choice.name in outcome.variants and choice is not best
    }
    enough = min(c.train.rank for c in scores if c == best or _loses_little(apart[c.name], sign))
    open_ = [c for c in scores if c.train.rank < enough and not _is_worse(apart[c.name], sign)]
    return RankSweep(outcome, seeds, best.name, apart, enough, tuple(sorted(c.train.rank for c in open_)))


def _loses_little(apart: Interval | None, sign: int) -> bool:
    """Whether the interval rules a loss of more than the margin out."""
    edges = [] if apart is None else [edge for edge in (apart.low, apart.high) if edge is not None]
    return bool(edges) and min(sign * edge for edge in edges) >= -MARGIN


def _is_worse(apart: Interval | None, sign: int) -> bool:
    """Whether the interval holds losses alone."""
    edges = [] if apart is None else [edge for edge in (apart.low, apart.high) if edge is not None]
    return bool(edges) and max(sign * edge for edge in edges) < 0
