"""The learning rate for each number of layers, chosen without looking at any criterion or at test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Rate:
    """The learning rate for a method and a number of layers, and what the others came to on the rows held back."""

    chosen: float
    scores: Mapping[float, float | None]  # of each rate tried; none where there was one only

    @property
    def at_edge(self) -> bool:
        """Whether a rate beyond those tried might have been better."""
        return len(self.scores) > 1 and self.chosen in (min(self.scores), max(self.scores))


def choose_rates(
    recipe: Recipe,
    num_layers: int,
    sizes: Sequence[int],
    methods: Sequence[str],
    jobs: int,
    kind: TaskKind,
    reporter: Reporter,
) -> dict[tuple[str, int], Rate]:
    """The learning rate for each method and number of layers: the one that trains *random* layers best.

    Judged on rows held back from training, never on test rows, and with layers that no criterion chose, so that all
    criteria are treated alike.

    Raises:
        LayersiftError: a training failed, since another start might choose otherwise; or none has a score.
    """
    rates = recipe.compare.learning_rates
    counts = [*sizes, num_layers]
    if len(rates) < 2:
        rate = Rate(rates[0] if rates else recipe.train.rate(kind), {})
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
    results, failures = run_cells(recipe, every, Path(recipe.output) / CELLS, jobs, reporter, "choosing learning rates")
    if failures:
        cell, why = next(iter(failures.items()))
        raise LayersiftError(f"no learning rate can be chosen while trainings fail: {cell.name}: {why}")
    chosen = {}
    for key, group in cells.items():
        scores = {cell.learning_rate: results[cell].score for cell in group}
        sign = 1 if unit_of(next(iter(results[group[0]].metrics))).higher_is_better else -1
        known = {rate: sign * score for rate, score in scores.items() if score is not None}
        if not known:
            raise LayersiftError(f"at no learning rate has {key[0]} on {key[1]} layers a score; give others")
        chosen[key] = Rate(max(known, key=lambda rate: known[rate]), scores)
        reporter.say(f"learning rate for {key[1]} layers with {key[0]}: {chosen[key].chosen:g}")
    return chosen
