"""The rate that `--learning-rate auto` finds beside the grids of `benchmarks/default_rates.py`.

    python benchmarks/rate_finder.py SHARED DATA MODELS [--only minilm-trec ...]

Takes the same rows and variants with the grid's epochs; nothing else is trained than the search's short trainings.
Each row holds the found rate and what the grid scores on test rows at the nearest rate and at its best one. Where the
grid's trainings are too short for a search, the row says so, and the rate is the rule's.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

from default_rates import (
    PAIRS,
    RESULTS,
    Pair,
    Variant,
    best_of,
    mean_of,
    recipe_for,
    results_by_rate,
    table_of,
    told,
)
from layersift.config.recipe import Recipe
from layersift.experiment.prepare import read_tables, task_of
from layersift.experiment.rates import find_rate
from layersift.progress import Reporter
from layersift.records.selection import Selection
from places import enter_places, take_places

HEADER = [
    "pair",
    "variant",
    "seed",
    "found rate",
    "rule's",
    "FLOPs spent",
    "nearest on the grid",
    "test",
    "grid's best",
]
HEADER += ["test", "why nothing was tried"]


def row_of(name: str, recipe: Recipe, pair: Pair, variant: Variant, seed: int) -> list[str]:
    """One search beside the grid."""
    by_rate = results_by_rate(recipe, pair, variant)
    task = task_of(recipe, read_tables(recipe))
    cell = variant.cell(recipe.train, pair.layers, 1e-3, seed)
    layers = ",".join(map(str, cell.layers))
    selection = replace(Selection.of_layers(task.empty, layers), model=recipe.model.name)
    found = find_rate(task, task.table, selection, replace(cell.train, learning_rate=None), seed, Reporter())
    nearest = min(by_rate, key=lambda rate: abs(math.log(rate / found.chosen)))
    best = best_of(by_rate)
    scores = [told(mean_of(by_rate[rate], "test"), pair) for rate in (nearest, best)]
    spent = f"{found.spent:.1%}"
    return [
        *(name, variant.name, str(seed), f"{found.chosen:g}", f"{found.rule:g}", spent),
        *(f"{nearest:g}", scores[0], f"{best:g}", scores[1], found.why_not),
    ]


def main() -> None:
    """Every pair that is asked for and has a grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    take_places(parser)
    parser.add_argument("--only", nargs="+", choices=list(PAIRS), default=["minilm-trec", "minilm-docstrings"])
    arguments = parser.parse_args()
    enter_places(arguments, RESULTS)
    rows = []
    for name in arguments.only:
        pair = PAIRS[name]
        recipe = recipe_for(name, pair)
        for variant in (v for v in pair.variants if len(results_by_rate(recipe, pair, v)) > 1):
            for seed in pair.default_seeds:
                rows.append(row_of(name, recipe, pair, variant, seed))
                print(table_of(HEADER, rows[-1:]), flush=True)
    print(table_of(HEADER, rows))


if __name__ == "__main__":
    main()
