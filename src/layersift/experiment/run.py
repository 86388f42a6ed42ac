"""`layersift run` and `sweep`: one selection, every arm of a recipe trained and judged. What is finished stays."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layersift.adapt.inspection import layer_costs
from layersift.adapt.methods import adapter_config
from layersift.adapt.ranks import with_ranks
from layersift.config.arms import SELECTED, UNTOUCHED, parse_arm, sweep_arms
from layersift.config.compare import CompareSettings
from layersift.config.fields import json_values
from layersift.config.recipe import Recipe
from layersift.config.select import how_many
from layersift.errors import LayersiftError
from layersift.evaluation.classes import Majority
from layersift.experiment.cell import ARMS, SELECTION, Job, load_base
from layersift.experiment.choices import Choice
from layersift.experiment.grid import contents_of, open_grid, require_jobs, run_cells
from layersift.experiment.judge import Judgement, Trained, judge
from layersift.experiment.prepare import Prepared, checked
from layersift.load.blocks import find_stack
from layersift.load.labels import has_head
from layersift.load.models import empty_model, load_config
from layersift.progress import Reporter
from layersift.provenance import made_by
from layersift.records.result import Cell, Result
from layersift.records.selection import Selection
from layersift.select.baselines import baseline
from layersift.select.choose import select
from layersift.select.sample import sample_table


@dataclass(frozen=True)
class Outcome:
    """What a run found: the selection, and each arm's result and how it compares."""

    recipe: Recipe
    selection: Selection
    arms: Mapping[str, Result]  # by name; none that failed
    rows: tuple[Judgement, ...]
    contents: Mapping[str, Any]  # fingerprints of model and data
    failures: Mapping[str, str]  # by arm
    new_head: bool = False  # the task's head is not in the checkpoint
    notices: tuple[str, ...] = ()  # what was cut or left out of the rows
    majority: Majority | None = None  # of a classification

    @property
    def metric(self) -> str:
        """The score's name."""
        return next(iter(next(iter(self.arms.values())).metrics))

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
        }

    def results(self) -> list[dict[str, Any]]:
        """A JSON object an arm; outcomes of the single samples are in its cell's file."""
        judged = {row.choice.name: row for row in self.rows}
        found = []
        for name, result in self.arms.items():
            intervals = {"score": judged[name].score, "from_all": judged[name].from_all}
            found.append({"arm": name, **result.summary()} | json_values(intervals))
        return found


def run(recipe: Recipe, jobs: int = 1, reporter: Reporter | None = None) -> Outcome:
    """Carry out a recipe.

    Writes, under its output: grid.json, selection.json, cells/ (a result each), arms/ (a run directory each).

    Raises:
        LayersiftError: the data, the model, a setting or the output cannot be used; or every arm failed.
    """
    reporter = reporter or Reporter()
    require_jobs(jobs)
    recipe = replace(recipe, compare=CompareSettings())  # nothing is tuned: no rows are held back for that
    layers, prepared = checked(recipe, reporter)
    how_many(recipe.select, layers)
    for arm in recipe.arms:
        parse_arm(arm, layers)
    with open_grid(recipe, with_selection=True) as output:
        selection = _selection(recipe, prepared, output / SELECTION, reporter)
        reporter.say(f"layers: {selection.mask} ({selection.rule})")
        choices = [_choice(arm, selection, recipe) for arm in recipe.arms]
        cells = {choice.name: choice.cell(choice.masks[0], recipe.seed) for choice in choices}
        wanted = [Job(cell, name if cell.mask else None) for name, cell in cells.items()]
        results, failures = run_cells(recipe, wanted, output, jobs, reporter, "arms")
        _keep_every_arm(output, cells, results)
        contents = contents_of(output)
    failed = {name: failures[cell] for name, cell in cells.items() if cell in failures}
    if wanted and not results:
        raise LayersiftError(f"every arm failed; {next(iter(failed))}: {next(iter(failed.values()))}")
    arms = {name: results[cell] for name, cell in cells.items() if cell in results}
    rows = judge(choices, Trained((recipe.seed,), results, failures)) if results else ()
    encoder = prepared.encoder
    judged = encoder.kind in ("classification", "regression")
    new_head = judged and not has_head(load_config(recipe.model), len(encoder.classes) or 1)
    return Outcome(recipe, selection, arms, rows, contents, failed, new_head, prepared.notices, prepared.majority)


def sweep(recipe: Recipe, sizes: str | None = None, jobs: int = 1, reporter: Reporter | None = None) -> Outcome:
    """The recipe's adapters on the N most important layers for several N, all from one scoring pass.

    Raises:
        LayersiftError: see :func:`run`; or sizes that are no numbers of layers.
    """
    layers = find_stack(empty_model(recipe.model), recipe.select.tower).num_layers
    return run(replace(recipe, arms=(*sweep_arms(layers, sizes), UNTOUCHED)), jobs, reporter)


def _choice(arm: str, selection: Selection, recipe: Recipe) -> Choice:
    """An arm as a row: every arm of a run is held against the others, whatever its number of layers."""
    train, name = recipe.train, parse_arm(arm).name
    if arm == UNTOUCHED:
        return Choice(name, 0, train.method, ("",), 0.0, train.rank, train.alpha)
    mask = (selection if arm == SELECTED else baseline(arm, selection, recipe.seed)).mask
    return Choice(name, 0, train.method, (mask,), train.learning_rate or 0.0, train.rank, train.alpha)


def _selection(recipe: Recipe, prepared: Prepared, path: Path, reporter: Reporter) -> Selection:
    """The recipe's selection, or the one that an earlier start has made."""
    if path.exists():
        return Selection.load(path)
    sample = sample_table(prepared.tables.train, prepared.encoder, recipe.select)
    loaded = load_base(recipe, prepared.encoder, recipe.seed)
    config = adapter_config(recipe.train, prepared.encoder.kind, 1, prepared.encoder.seq2seq)
    costs: list[int] = []
    if recipe.select.budget_params is not None:
        stack = find_stack(loaded.model, recipe.select.tower)
        if config is not None:
            config = with_ranks(loaded.model, stack, range(stack.num_layers), config, recipe.train.ranks)
        costs = layer_costs(loaded.model, stack, config)
    with reporter.stage("reading representations", len(sample.examples)) as progress:
        selection = select(loaded, sample, recipe.select, layer_costs=costs, adapter=config, progress=progress)
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
