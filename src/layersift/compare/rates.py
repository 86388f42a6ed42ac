"""The learning rate for each number of layers, chosen without looking at any criterion or at test rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from layersift.compare.cells import Cell, mask_of
from layersift.compare.grid import CELLS, run_cells
from layersift.compare.recipe import Recipe
from layersift.compare.statistics import unit_of
from layersift.errors import LayersiftError
from layersift.load.data import TaskKind
from layersift.progress import Reporter


def random_masks(num_layers: int, size: int, draws: int, seed: int) -> tuple[str, ...]:
    """Different masks of ``size`` layers, drawn by the seed; as many as there are, at most ``draws``."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    for _ in range(50 * draws):
        if len(found) < draws:
            found[mask_of(sorted(generator.choice(num_layers, size, replace=False).tolist()), num_layers)] = None
    return tuple(found)


def choose_rates(
    recipe: Recipe,
    num_layers: int,
    sizes: Sequence[int],
    methods: Sequence[str],
    jobs: int,
    kind: TaskKind,
    reporter: Reporter,
) -> dict[tuple[str, int], float]:
    """The learning rate for each method and number of layers: the one that trains *random* layers best.

    Judged on rows held back from training, never on test rows, and with layers that no criterion chose, so that all
    criteria are treated alike.

    Raises:
        LayersiftError: none of the trainings succeeded.
    """
    rates = recipe.compare.learning_rates
    counts = [*sizes, num_layers]
    if len(rates) < 2:
        rate = rates[0] if rates else recipe.train.rate(kind)
        return {(method, count): rate for method in methods for count in counts}
    cells: dict[tuple[str, int], list[Cell]] = {}
    for method in methods:
        for count in counts:
            (mask,) = random_masks(num_layers, count, 1, recipe.seed)
            train = recipe.train
            cells[method, count] = [
                Cell(mask, recipe.seed, method, rate, train.rank, train.alpha, "validation") for rate in rates
            ]
    every = [cell for group in cells.values() for cell in group]
    results, _ = run_cells(recipe, every, Path(recipe.output) / CELLS, jobs, reporter, "choosing learning rates")
    chosen = {}
    for key, group in cells.items():
        done = [(results[c], c.learning_rate) for c in group if c in results and results[c].score is not None]
        if not done:
            raise LayersiftError(f"no training of {key[1]} layers with {key[0]} succeeded; see {recipe.output}/{CELLS}")
        sign = 1 if unit_of(next(iter(done[0][0].metrics))).higher_is_better else -1
        chosen[key] = max(done, key=lambda pair: sign * (pair[0].score or 0.0))[1]
        reporter.say(f"learning rate for {key[1]} layers with {key[0]}: {chosen[key]:g}")
    return chosen
