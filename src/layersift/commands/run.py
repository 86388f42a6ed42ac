"""`layersift run`: select, train and evaluate by a recipe."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import options as o

if TYPE_CHECKING:
    from layersift.config.recipe import Recipe
    from layersift.experiment.cell import Jobs
    from layersift.experiment.run import Outcome

    from .console import Console


def run(
    recipe: o.RecipeName,
    assignments: o.Sets = None,
    output: o.GridOutput = None,
    jobs: o.Jobs = 1,
    threads: o.Threads = None,
    on: o.On = None,
    gpus: o.Gpus = None,
    smoke: o.Smoke = False,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Carry out RECIPE and end in one table. What is finished is not done again."""
    from layersift.config.recipe import find_recipe, is_figure, read_recipe
    from layersift.experiment.run import run as run_recipe
    from layersift.experiment.smoke import INPUTS, shrink
    from layersift.processes import by_main_process, is_main_process, join_processes

    from .console import Console

    console = Console(quiet, json)
    path = find_recipe(recipe)
    by = jobs if dry_run else o.carried_out_by(jobs, on, threads, gpus)
    _require_whole_models(figure=is_figure(path))
    if is_figure(path):
        _figure(path, assignments, output, by, smoke, dry_run, console)
        return
    resolved = read_recipe(path, assignments, str(output) if output else None)
    with join_processes():
        if smoke:
            inputs = Path(f"{resolved.output}{INPUTS}")
            resolved = by_main_process(partial(shrink, resolved, inputs))
        if dry_run:
            lines = _resolved(resolved)
            console.say(o.listed(lines))
            o.say_how_to_do_it(console)
            console.result(lines | {"recipe": resolved.to_json()})
            return
        outcome = run_recipe(resolved, by, console)
    if is_main_process():
        show(outcome, console)


def _require_whole_models(figure: bool) -> None:
    """Refuse what several processes cannot share of a recipe.

    Raises:
        LayersiftError: they are to cut the model into shards, or to draw a figure of several recipes.
    """
    from layersift.errors import LayersiftError
    from layersift.processes import started, take_sharding

    if take_sharding(False):
        raise LayersiftError("run keeps a whole model in each process; for FSDP use `layersift train --sharding fsdp`")
    if figure and started() > 1:
        raise LayersiftError(
            f"a figure's recipes run in one process, and WORLD_SIZE says that {started()} were started; start each "
            "recipe that it names by itself, or one process"
        )


def show(outcome: Outcome, console: Console) -> None:
    """Write and print what a run found.

    Raises:
        LayersiftError: some of its variants failed; what the others gave is written.
    """
    tell(outcome, console)
    tell_next(outcome, console)
    console.result(outcome.results())
    require_variants(outcome)


def tell(outcome: Outcome, console: Console) -> None:
    """Write what a run found and print it for people."""
    from layersift.report.tables import run_caption, run_rows
    from layersift.report.write import write_run

    write_run(outcome, Path(outcome.recipe.output))
    if outcome.rows:
        if outcome.nothing_learned is not None:
            console.say(outcome.nothing_learned)
        console.table(run_rows(outcome), Path(outcome.recipe.output) / "table.md")
        console.say(run_caption(outcome))
    console.say(f"written to {outcome.recipe.output}")


def tell_next(outcome: Outcome, console: Console) -> None:
    """Say how to judge the best variant whose run is kept."""
    from layersift.experiment.cell import VARIANTS
    from layersift.statistics.intervals import unit_of

    from .console import next_step

    runs = {row.choice.name: Path(outcome.recipe.output) / VARIANTS / row.choice.name for row in outcome.rows}
    scored = [
        (unit_of(next(iter(row.metrics))).sign * row.score.value, row)
        for row in outcome.rows
        if row.score and row.metrics
    ]
    kept = [(score, runs[row.choice.name]) for score, row in scored if runs[row.choice.name].is_dir()]
    if kept:
        _, run = max(kept, key=lambda one: one[0])
        console.say(next_step("judge it on other rows", "layersift", "evaluate", run, "--data", "FILE"))


def require_variants(outcome: Outcome) -> None:
    """Raise LayersiftError if some of a run's variants failed."""
    from layersift.errors import LayersiftError

    if outcome.failures:
        name, why = next(iter(outcome.failures.items()))
        raise LayersiftError(
            f"{len(outcome.failures)} of {len(outcome.recipe.variants)} variants failed, {name} for one: {why} (the "
            "same command tries them again)"
        )


def _figure(
    path: Path,
    assignments: list[str] | None,
    output: Path | None,
    by: Jobs,
    smoke: bool,
    dry_run: bool,
    console: Console,
) -> None:
    from layersift.config.recipe import read_figure
    from layersift.experiment.run import figure_output, run_figure
    from layersift.report.write import write_figure, write_run

    from .console import next_step

    figure = read_figure(path, str(output) if output else None)
    if dry_run:
        listed = {"figure": figure.figure, "recipes": ", ".join(figure.recipes), "output": figure.output}
        console.say(o.listed(listed))
        o.say_how_to_do_it(console)
        console.result(listed)
        return
    outcomes = run_figure(figure, assignments or [], smoke, by, console)
    for outcome in outcomes.values():
        write_run(outcome, Path(outcome.recipe.output))
    place = figure_output(figure, smoke)
    write_figure(figure.figure, outcomes, place)
    console.say(next_step("look at it", place / "figure.png"))
    console.result({name: outcome.results() for name, outcome in outcomes.items()})


def _resolved(recipe: Recipe) -> dict[str, str]:
    """What a recipe is going to do."""
    from layersift.config.defaults import fill_epochs
    from layersift.config.select import how_many
    from layersift.config.train import AUTO
    from layersift.experiment.prepare import read_tables, require_known, task_of
    from layersift.experiment.run import choices_of_variants, needs_scores

    require_known(recipe)
    tables = read_tables(recipe)
    stack = task_of(recipe, tables).stack
    most = recipe.evaluate.max_samples
    count = min(recipe.train.max_samples or len(tables.train.rows), len(tables.train.rows))
    recipe = replace(recipe, train=fill_epochs(recipe.train, tables.train.kind, count))
    tests = {name: min(most or len(t.rows), len(t.rows)) for name, t in tables.test.items()}
    layers = stack.num_layers
    if needs_scores(recipe, layers):
        chosen = f"{how_many(recipe.select, layers) or 'as many as fit'} of {layers}, by {recipe.select.criterion}"
        variants, rate = ", ".join(recipe.variants), recipe.train.named_rate or "the default of each variant's layers"
    else:
        chosen = "none are chosen by scores"
        choices = choices_of_variants(recipe, layers, None, tables.train.kind)
        variants = ", ".join(f"{choice.name} {' '.join(choice.masks)}".strip() for choice in choices)
        trained = [choice for choice in choices if choice.trained]
        rate = ", ".join(f"{choice.train.rate:g} for {choice.name}" for choice in trained)
    if recipe.train.learning_rate == AUTO:
        rate = f"auto, around {rate}"
    return {
        "model": f"{recipe.model.name}, {stack.pattern}, {layers} layers",
        "columns": tables.train.described(),
        "layers": chosen,
        "train": f"{count} rows, {recipe.train.steps(count)} steps a variant",
        "test": ", ".join(f"{rows} rows {name}".strip() for name, rows in tests.items()),
        "variants": variants,
        "learning rate": str(rate),
        "output": recipe.output,
    }
