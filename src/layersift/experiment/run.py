"""`layersift run` and `sweep`: one selection, every arm of a recipe trained and judged. What is finished stays."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layersift.config.defaults import hidden_size
from layersift.config.fields import json_values
from layersift.config.inputs import TaskKind
from layersift.config.recipe import FigureRecipe, Recipe, find_recipe, read_recipe
from layersift.config.select import how_many
from layersift.config.variants import FIRST, SELECTED, UNTOUCHED, CompareSettings, parse_arm, sweep_arms
from layersift.data.table import has_head
from layersift.errors import LayersiftError
from layersift.evaluation.classes import Majority
from layersift.experiment.cell import ARMS, SELECTION, Job, Jobs
from layersift.experiment.choices import LAST, RANDOM, Choice, draw_notices
from layersift.experiment.grid import Kind, contents_of, open_grid, require_jobs, run_cells
from layersift.experiment.judge import Judgement, Trained, judge, nothing_learned
from layersift.experiment.prepare import Prepared, checked
from layersift.experiment.rates import rate_of
from layersift.experiment.smoke import INPUTS, shrink
from layersift.models.load import empty_model, load_config
from layersift.models.stacks import find_stack
from layersift.progress import Reporter
from layersift.provenance import made_by
from layersift.records.result import Cell, Result
from layersift.records.selection import Selection
from layersift.select.choose import select
from layersift.select.layers import arm_mask, draw_masks


@dataclass(frozen=True)
class Outcome:
    """What a run found: the selection, and each arm's result and how it compares."""

    recipe: Recipe
    selection: Selection | None  # None where no arm's layers are chosen by scores
    arms: Mapping[str, tuple[Result, ...]]  # by name, a result a draw; none that failed
    rows: tuple[Judgement, ...]
    contents: Mapping[str, Any]  # fingerprints of model and data
    failures: Mapping[str, str]  # by arm
    new_head: bool = False  # the task's head is not in the checkpoint
    notices: tuple[str, ...] = ()  # what was cut or left out of the rows
    majority: Majority | None = None  # of a classification
    nothing_learned: str | None = None  # that no arm beats what needs no training; then nothing is ranked

    @property
    def metric(self) -> str:
        """The score's name."""
        return next(iter(next(iter(self.arms.values()))[0].metrics))

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
        """A JSON object an arm; outcomes of the single samples are in its cell's file.

        Of an arm of several draws the metrics are means, and ``draws`` has an object each.
        """
        judged = {row.choice.name: row for row in self.rows}
        objects = []
        for name, draws in self.arms.items():
            row = judged[name]
            values = draws[0].summary() if len(row.choice.masks) == 1 else _means(row, draws)
            more = {
                "learning_rate": row.choice.train.learning_rate if row.choice.trained else None,
                "score": row.score,
                "from_all": row.from_all,
                "same_as": row.same_as or None,
                "notices": row.notices,
            }
            objects.append({"arm": name, **values} | json_values(more))
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
    """Carry out a recipe.

    Writes, under its output: grid.json, selection.json, cells/ (a result each), arms/ (a run directory each).

    Raises:
        LayersiftError: the data, the model, a setting or the output cannot be used; or every arm failed.
    """
    return _train_arms(recipe, jobs, reporter or Reporter(), "run")


def _train_arms(recipe: Recipe, jobs: Jobs, reporter: Reporter, kind: Kind) -> Outcome:
    require_jobs(jobs)
    # Nothing is tuned: no rows are held back for that.
    recipe = replace(recipe, compare=CompareSettings(random=recipe.compare.random))
    recipe, layers, prepared = checked(recipe, reporter)
    how_many(recipe.select, layers)
    for arm in recipe.arms:
        parse_arm(arm, layers)
    with open_grid(recipe, kind, prepared) as output:
        selection = None
        if needs_scores(recipe, layers):
            selection = _selection(recipe, prepared, output / SELECTION, reporter)
            reporter.say(f"layers: {selection.mask} ({selection.rule})")
        choices = choices_of_arms(recipe, layers, selection, prepared.encoder.kind)
        for choice in choices:
            if choice.trained:
                rate = choice.train.rate
                reporter.say(f"{choice.name}: {', '.join(choice.masks)}, learning rate {rate:g}")
        cells = _cells_by_directory(choices, recipe.seed)
        wanted = [Job(cell, name if cell.mask else None) for name, cell in cells.items()]
        results, failures = run_cells(recipe, wanted, output, jobs, reporter, "arms")
        _keep_every_arm(output, cells, results)
        contents = contents_of(output)
    failed = {
        choice.name: failures[cell]
        for choice in choices
        for cell in reversed(choice.cells([recipe.seed]))
        if cell in failures
    }
    if wanted and not results:
        raise LayersiftError(f"every arm failed; {next(iter(failed))}: {next(iter(failed.values()))}")
    trained = Trained((recipe.seed,), results, failures)
    arms = {choice.name: tuple(done) for choice in choices if (done := trained.done(choice))}
    encoder = prepared.encoder
    judged = encoder.kind in ("classification", "regression")
    new_head = judged and not has_head(load_config(recipe.model), len(encoder.classes) or 1)
    return Outcome(
        recipe=recipe,
        selection=selection,
        arms=arms,
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
    arms = (*sweep_arms(layers, sizes), UNTOUCHED)
    return _train_arms(replace(recipe, arms=arms), jobs, reporter or Reporter(), "sweep")


def needs_scores(recipe: Recipe, num_layers: int) -> bool:
    """Whether the layers of some arm, or their number, come from scores; a recipe without arms only selects."""
    by_number = not {FIRST, LAST, RANDOM}.isdisjoint(recipe.arms)
    by_ranking = any(arm == SELECTED or parse_arm(arm).top is not None for arm in recipe.arms)
    return not recipe.arms or by_ranking or (by_number and how_many(recipe.select, num_layers) is None)


def choices_of_arms(recipe: Recipe, num_layers: int, selection: Selection | None, kind: TaskKind) -> list[Choice]:
    """The arms as rows of one table, with their learning rates: each is held against the others, whatever its size.

    Random draws are none of the other arms' layers, as far as others remain.

    Raises:
        SelectionError: an arm does not fit the number of layers.
    """
    count = len(selection.selected_layers) if selection else how_many(recipe.select, num_layers) or num_layers
    ranking = selection.ranking if selection else ()
    masks = {
        arm: selection.mask if arm == SELECTED and selection else arm_mask(arm, num_layers, count, ranking)
        for arm in recipe.arms
        if arm not in (UNTOUCHED, RANDOM)
    }
    draws = draw_masks(num_layers, count, recipe.compare.random, recipe.seed, set(masks.values()))
    choices, width = [], hidden_size(load_config(recipe.model))
    for arm in recipe.arms:
        of_arm = ("",) if arm == UNTOUCHED else draws if arm == RANDOM else (masks[arm],)
        choice = Choice.of(parse_arm(arm).name, 0, of_arm, recipe.train)
        if choice.trained:
            choice = choice.with_settings(learning_rate=rate_of(recipe, choice.variants[0], kind, width))
        choices.append(choice)
    return choices


def _cells_by_directory(choices: Sequence[Choice], seed: int) -> dict[str, Cell]:
    """The cell of each arm by the name of its run directory; a random draw's has its mask, since draws may change."""
    return {
        f"{RANDOM}-{variant.mask}" if choice.name == RANDOM else choice.name: variant.cell(seed)
        for choice in choices
        for variant in choice.variants
    }


def _selection(recipe: Recipe, prepared: Prepared, path: Path, reporter: Reporter) -> Selection:
    """The recipe's selection, or the one that an earlier start has made."""
    if path.exists():
        return Selection.load(path)
    task = prepared.task
    sample = task.sample(recipe.select)
    loaded = task.load(recipe.seed)
    adapter = task.adapter(recipe.train)
    if recipe.select.budget_params is not None:
        adapter = task.with_ranks(adapter, recipe.train)
    costs = task.layer_costs(recipe.select, adapter)
    with reporter.stage("reading representations", len(sample.examples)) as progress:
        selection = select(loaded, sample, recipe.select, layer_costs=costs, adapter=adapter, progress=progress)
    selection.save(path)
    return selection


def _keep_every_arm(output: Path, cells: Mapping[str, Cell], results: Mapping[Cell, Result]) -> None:
    """Arms whose layers are the same are trained once; each has its run directory all the same."""
    first: dict[Cell, str] = {}
    for name, cell in cells.items():
        place = output / ARMS / name
        if not cell.mask or cell not in results:
            continue
        if place.exists():
            first.setdefault(cell, name)
        elif cell in first:
            shutil.copytree(output / ARMS / first[cell], place)


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
        recipe = replace(given, arms=figure.arms, output=str(output / name))
        if smoke:
            recipe = replace(shrink(recipe, output / f"{name}{INPUTS}"), output=str(output / name))
        outcomes[name] = run(recipe, jobs, reporter)
    return outcomes


def figure_output(figure: FigureRecipe, smoke: bool) -> Path:
    """Where a figure is kept; a smoke run's beside it."""
    return Path(f"{figure.output}-smoke" if smoke else figure.output)
