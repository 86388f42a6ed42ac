"""`layersift run` and `sweep`: one selection, every variant of a recipe trained and judged. What is finished stays.

`sweep --ranks` trains the same layers at several ranks and says which rank is enough.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layersift.config.defaults import hidden_size
from layersift.config.fields import json_values
from layersift.config.recipe import FigureRecipe, Recipe, TaskKind, find_recipe, read_recipe
from layersift.config.select import how_many
from layersift.config.train import AUTO
from layersift.config.variants import BASE, FIRST, SELECTED, CompareSettings, parse_variant, sweep_variants
from layersift.data.table import has_head
from layersift.errors import LayersiftError
from layersift.evaluation.metrics import Majority
from layersift.experiment.cell import SELECTION, VARIANTS, Job, Jobs
from layersift.experiment.choices import LAST, RANDOM, Choice, at_rank, draw_notices, has_one_rank
from layersift.experiment.costs import Costs
from layersift.experiment.grid import Kind, contents_of, open_grid, require_jobs, run_cells
from layersift.experiment.judge import Judgement, Trained, judge, nothing_learned, runs_of
from layersift.experiment.prepare import Prepared, checked
from layersift.experiment.rates import rate_of, search_rates
from layersift.experiment.smoke import INPUTS, shrink
from layersift.experiment.train_task import require_shareable
from layersift.models.load import empty_model, load_config
from layersift.models.stacks import find_stack
from layersift.processes import by_main_process, from_all_processes
from layersift.progress import Reporter
from layersift.provenance import made_by
from layersift.records.runs import Cell, Result
from layersift.records.selection import Selection
from layersift.select.choose import select
from layersift.select.layers import draw_masks, variant_mask
from layersift.statistics.intervals import Interval, difference


@dataclass(frozen=True)
class Outcome:
    """What a run found: the selection, and each variant's result and how it compares."""

    recipe: Recipe
    selection: Selection | None  # None where no variant's layers are chosen by scores
    variants: Mapping[str, tuple[Result, ...]]  # by name, a result a draw and seed; none that failed
    rows: tuple[Judgement, ...]
    contents: Mapping[str, Any]  # fingerprints of model and data
    failures: Mapping[str, str]  # by variant
    new_head: bool = False  # the task's head is not in the checkpoint
    notices: tuple[str, ...] = ()  # what was cut or left out of the rows
    majority: Majority | None = None  # of a classification
    nothing_learned: str | None = None  # that no variant beats what needs no training; then nothing is ranked

    @property
    def metric(self) -> str:
        """The score's name."""
        return next(iter(next(iter(self.variants.values()))[0].metrics))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "schema_version": 2,
            "recipe": self.recipe.to_json(),
            **made_by(),
            "contents": dict(self.contents),
            "results": self.results(),
            "failures": dict(self.failures),
            "notices": list(self.notices),
            "majority": json_values(self.majority),
            "nothing_learned": self.nothing_learned,
        }

    def results(self) -> list[dict[str, Any]]:
        """A JSON object a variant; outcomes of the single samples are in its cell's file.

        Of a variant of several draws or seeds the metrics are means, and ``draws`` has an object each.
        """
        judged = {row.choice.name: row for row in self.rows}
        objects = []
        for name, draws in self.variants.items():
            row = judged[name]
            alone = len(row.choice.masks) == len(draws) == 1
            values = draws[0].summary() if alone else _means(row, draws)
            more = {
                "learning_rate": row.choice.train.learning_rate if row.choice.trained else None,
                "score": row.score,
                "from_all": row.from_all,
                "same_as": row.same_as or None,
                "notices": row.notices,
            }
            objects.append({"variant": name, **values} | json_values(more))
        return objects


def _means(row: Judgement, draws: Sequence[Result]) -> dict[str, Any]:
    """What several draws gave and cost on average, and each of them."""
    means = {
        "metrics": row.metrics,
        "trainable_parameters": row.parameters,
        "train_seconds": row.seconds,
        "peak_memory_bytes": row.memory,
        "adapter_bytes": row.adapter,
        "train_loss": row.train_loss,
    }
    return {"mask": None, "samples": draws[0].samples, **means, "draws": [draw.summary() for draw in draws]}


def run(recipe: Recipe, jobs: Jobs = 1, reporter: Reporter | None = None) -> Outcome:
    """Choose layers, train every variant of a recipe, and judge it; finished trainings are not repeated.

    Writes, under its output: grid.json, selection.json, cells/ (a result each), variants/ (a run directory each).
    Trainings run in processes of their own, so a script calls it below ``if __name__ == "__main__":``. Among several
    processes (Accelerate, torchrun) these share each training, one after the other, and the main one writes.

    Args:
        recipe: model, data, settings and the variants to train.
        jobs: how many trainings run at a time, each in a process of its own.
        reporter: is told of the progress; None: nobody is.

    Returns:
        The selection, each variant's results, and a row for each variant with its verdict.

    Raises:
        LayersiftError: the data, the model, a setting or the output cannot be used; or every variant failed.

    Examples:
        >>> from pathlib import Path
        >>> from layersift import read_recipe, run
        >>> outcome = run(read_recipe(Path("recipe.yaml"), ["variants=[selected, all]"], output="ran"))
        >>> outcome.selection.mask, outcome.metric, list(outcome.variants)
        ('0101', 'accuracy', ['selected', 'all'])
    """
    return _train_variants(recipe, jobs, reporter or Reporter(), "run")


def _train_variants(recipe: Recipe, jobs: Jobs, reporter: Reporter, kind: Kind) -> Outcome:
    require_jobs(jobs)
    # Nothing is tuned: no rows are held back for that.
    recipe = replace(recipe, compare=CompareSettings(random=recipe.compare.random))
    recipe, layers, prepared = checked(recipe, reporter)
    how_many(recipe.select, layers)
    for variant in recipe.variants:
        parse_variant(variant, layers)
    require_shareable(recipe.train)
    with open_grid(recipe, kind, prepared) as output:
        by_main_process(lambda: _rename_as_today(output))
        selection = None
        if needs_scores(recipe, layers):
            selection = _selection(recipe, prepared, output / SELECTION, reporter)
            reporter.say(f"layers: {selection.mask} ({selection.rule})")
        choices = choices_of_variants(recipe, layers, selection, prepared.encoder.kind)
        choices = with_found_rates(recipe, choices, reporter)
        return train_choices(recipe, prepared, choices, (recipe.seed,), jobs, reporter, selection)


def _rename_as_today(output: Path) -> None:
    """The directory of runs, which older versions called otherwise."""
    if (output / "arms").is_dir():
        (output / "arms").rename(output / VARIANTS)


def train_choices(
    recipe: Recipe,
    prepared: Prepared,
    choices: Sequence[Choice],
    seeds: tuple[int, ...],
    jobs: Jobs,
    reporter: Reporter,
    selection: Selection | None = None,
) -> Outcome:
    """Train and judge rows of one table with every seed, in the recipe's output, which is open.

    Raises:
        LayersiftError: every training failed.
    """
    output = Path(recipe.output)
    for choice in choices:
        if choice.trained:
            reporter.say(f"{choice.name}: {', '.join(choice.masks)}, learning rate {choice.train.rate:g}")
    cells = _cells_by_directory(choices, seeds)
    wanted = [Job(cell, name if cell.mask else None) for name, cell in cells.items()]
    results, failures = run_cells(recipe, wanted, output, jobs, reporter, "variants")
    by_main_process(lambda: _keep_every_variant(output, cells, results))
    contents = contents_of(output)
    failed = {
        choice.name: failures[cell] for choice in choices for cell in reversed(choice.cells(seeds)) if cell in failures
    }
    if wanted and not results:
        raise LayersiftError(f"every variant failed; {next(iter(failed))}: {next(iter(failed.values()))}")
    trained = Trained(seeds, results, failures)
    variants = {choice.name: tuple(done) for choice in choices if (done := trained.done(choice))}
    encoder = prepared.encoder
    judged = encoder.kind in ("classification", "regression")
    new_head = judged and not has_head(load_config(recipe.model), len(encoder.classes) or 1)
    return Outcome(
        recipe=recipe,
        selection=selection,
        variants=variants,
        rows=judge(choices, trained) if results else (),
        contents=contents,
        failures=failed,
        new_head=new_head,
        notices=(*prepared.notices, *draw_notices(choices, recipe.compare.random)),
        majority=prepared.majority,
        nothing_learned=nothing_learned(choices, trained, prepared.majority) if results else None,
    )


def sweep(recipe: Recipe, sizes: str | None = None, jobs: Jobs = 1, reporter: Reporter | None = None) -> Outcome:
    """The recipe's adapters on the N most important layers for several N, all from one scoring pass.

    Raises:
        LayersiftError: see :func:`run`; or sizes that are no numbers of layers.
    """
    layers = find_stack(empty_model(recipe.model), recipe.select.tower).num_layers
    variants = (*sweep_variants(layers, sizes), BASE)
    return _train_variants(replace(recipe, variants=variants), jobs, reporter or Reporter(), "sweep")


def needs_scores(recipe: Recipe, num_layers: int) -> bool:
    """Whether the layers of some variant, or their number, come from scores; a recipe without variants only selects."""
    by_number = not {FIRST, LAST, RANDOM}.isdisjoint(recipe.variants)
    by_ranking = any(variant == SELECTED or parse_variant(variant).top is not None for variant in recipe.variants)
    return not recipe.variants or by_ranking or (by_number and how_many(recipe.select, num_layers) is None)


def choices_of_variants(recipe: Recipe, num_layers: int, selection: Selection | None, kind: TaskKind) -> list[Choice]:
    """The variants as rows of one table, with their learning rates: each is held against the others, whatever its size.

    Random draws are none of the other variants' layers, as far as others remain.

    Raises:
        SelectionError: a variant does not fit the number of layers.
    """
    count = len(selection.selected_layers) if selection else how_many(recipe.select, num_layers) or num_layers
    ranking = selection.ranking if selection else ()
    masks = {
        variant: selection.mask
        if variant == SELECTED and selection
        else variant_mask(variant, num_layers, count, ranking)
        for variant in recipe.variants
        if variant not in (BASE, RANDOM)
    }
    draws = draw_masks(num_layers, count, recipe.compare.random, recipe.seed, set(masks.values()))
    choices, width = [], hidden_size(load_config(recipe.model))
    for variant in recipe.variants:
        of_variant = ("",) if variant == BASE else draws if variant == RANDOM else (masks[variant],)
        choice = Choice.of(parse_variant(variant).name, 0, of_variant, recipe.train)
        if choice.trained:
            choice = choice.with_settings(learning_rate=rate_of(recipe, choice.variants[0], kind, width))
        choices.append(choice)
    return choices


def with_found_rates(recipe: Recipe, choices: Sequence[Choice], reporter: Reporter) -> list[Choice]:
    """The rows, where the recipe's learning rate is ``auto`` with what :func:`search_rates` finds for each."""
    if recipe.train.learning_rate != AUTO:
        return list(choices)
    cells = {choice.name: choice.variants[0].cell(recipe.seed) for choice in choices if choice.trained}
    searches = search_rates(recipe, cells, reporter)
    return [c.with_settings(learning_rate=searches[c.name].chosen) if c.trained else c for c in choices]


def _cells_by_directory(choices: Sequence[Choice], seeds: Sequence[int]) -> dict[str, Cell]:
    """The cell of each variant by the name of its run directory; of several seeds with the seed.

    A random draw's has its mask, since draws may change.
    """
    return {
        (f"{RANDOM}-{variant.mask}" if choice.name == RANDOM else choice.name)
        + (f"-seed-{seed}" if len(seeds) > 1 else ""): variant.cell(seed)
        for choice in choices
        for variant in choice.variants
        for seed in seeds
    }


def _selection(recipe: Recipe, prepared: Prepared, path: Path, reporter: Reporter) -> Selection:
    """The recipe's selection, or the one that an earlier start has made."""
    if (kept := by_main_process(lambda: Selection.load(path) if path.exists() else None)) is not None:
        return kept
    task = prepared.task
    sample = task.sample(recipe.select)
    loaded = task.load(recipe.seed)
    adapter = task.adapter(recipe.train)
    if recipe.select.budget_params is not None:
        adapter = task.with_ranks(adapter, recipe.train)
    costs = task.layer_costs(recipe.select, adapter)
    with reporter.stage("reading representations", len(sample.examples)) as progress:
        selection = select(loaded, sample, recipe.select, layer_costs=costs, adapter=adapter, progress=progress)
    selection = from_all_processes(selection)[0]  # rounding may differ, and all have to train the same layers
    by_main_process(lambda: selection.save(path))
    return selection


def _keep_every_variant(output: Path, cells: Mapping[str, Cell], results: Mapping[Cell, Result]) -> None:
    """Variants whose layers are the same are trained once; each has its run directory all the same."""
    first: dict[Cell, str] = {}
    for name, cell in cells.items():
        place = output / VARIANTS / name
        if not cell.mask or cell not in results:
            continue
        if place.exists():
            first.setdefault(cell, name)
        elif cell in first:
            shutil.copytree(output / VARIANTS / first[cell], place)


def run_figure(
    figure: FigureRecipe,
    assignments: Sequence[str] = (),
    smoke: bool = False,
    jobs: Jobs = 1,
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
        recipe = replace(given, variants=figure.variants, output=str(output / name))
        if smoke:
            recipe = replace(shrink(recipe, output / f"{name}{INPUTS}"), output=str(output / name))
        outcomes[name] = run(recipe, jobs, reporter)
    return outcomes


def figure_output(figure: FigureRecipe, smoke: bool) -> Path:
    """Where a figure is kept; a smoke run's beside it."""
    return Path(f"{figure.output}-smoke" if smoke else figure.output)


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
        choices = with_found_rates(recipe, choices, reporter)
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
