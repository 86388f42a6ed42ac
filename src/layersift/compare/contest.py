"""`layersift compare`: every criterion's layers trained alike, and what tells them apart."""

from __future__ import annotations

from layersift.compare.field import scores_of, sizes_of
from layersift.compare.grid import CELLS, check_jobs, contents_of, open_grid, run_cells
from layersift.compare.rates import choose_rates
from layersift.compare.recipe import Recipe
from layersift.compare.standings import Contest, entries_of, judge
from layersift.errors import LayersiftError
from layersift.load.blocks import choose_stack, find_stacks
from layersift.load.models import empty_model
from layersift.progress import Reporter


def compare(recipe: Recipe, jobs: int = 1, reporter: Reporter | None = None) -> Contest:
    """Score, train and judge; what is finished is not done again.

    Writes, under the recipe's output: grid.json, cells/, scores.json.

    Raises:
        LayersiftError: the data, the model, a setting or the output cannot be used.
    """
    reporter = reporter or Reporter()
    check_jobs(jobs)
    stack = choose_stack(find_stacks(empty_model(recipe.model)), recipe.select.tower)
    sizes = sizes_of(recipe, stack.num_layers)
    methods = recipe.compare.methods or [recipe.train.method]
    seeds = tuple(recipe.seed + i for i in range(recipe.compare.seeds))
    with open_grid(recipe) as output:
        field = scores_of(recipe, sizes, output, reporter)
        rates = choose_rates(recipe, stack.num_layers, sizes, methods, jobs, field.kind, reporter)
        entries = entries_of(recipe, field, sizes, methods, rates)
        cells = [cell for entry in entries for cell in entry.cells(seeds)]
        results, failures = run_cells(recipe, cells, output / CELLS, jobs, reporter, "training and judging")
        contents = contents_of(output)
    if not results:
        raise LayersiftError(f"no training succeeded; the first one: {next(iter(failures.values()))}")
    return judge(recipe, field, entries, rates, seeds, results, failures, contents)
