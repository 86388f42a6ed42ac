"""`layersift run` and `sweep`: one selection, every variant of a recipe trained and judged. What is finished stays."""

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
from layersift.config.variants import BASE, FIRST, SELECTED, CompareSettings, parse_variant, sweep_variants
from layersift.data.table import has_head
from layersift.errors import LayersiftError
from layersift.evaluation.classes import Majority
from layersift.experiment.cell import SELECTION, VARIANTS, Job, Jobs
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
from layersift.select.layers import draw_masks, variant_mask


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
    """Carry out a recipe.

    Writes, under its output: grid.json, selection.json, cells/ (a result each), variants/ (a run directory each).

    Raises:
        LayersiftError: the data, the model, a setting or the output cannot be used; or every variant failed.
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
    with open_grid(recipe, kind, prepared) as output:
        if (output / "arms").is_dir():  # as older versions called it
            (output / "arms").rename(output / VARIANTS)
        selection = None
        if needs_scores(recipe, layers):
            selection = _selection(recipe, prepared, output / SELECTION, reporter)
            reporter.say(f"layers: {selection.mask} ({selection.rule})")
        choices = choices_of_variants(recipe, layers, selection, prepared.encoder.kind)
        return train_choices(recipe, prepared, choices, (recipe.seed,), jobs, reporter, selection)


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
    _keep_every_variant(output, cells, results)
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
