"""The learning rate for each number of layers, chosen without looking at any criterion or at test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layersift.config.data import TaskKind
from layersift.config.recipe import Recipe
from layersift.errors import LayersiftError
from layersift.experiment.cell import Job
from layersift.experiment.grid import run_cells
from layersift.progress import Reporter
from layersift.records.result import Cell
from layersift.records.scores import mask_of
from layersift.statistics.verdicts import unit_of


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
    counts: Sequence[int],
    num_layers: int,
    methods: Sequence[str],
    kind: TaskKind,
    jobs: int,
    reporter: Reporter,
) -> dict[tuple[str, int], Rate]:
    """The learning rate for each method and number of layers: the one that trains *random* layers best.

    Judged on rows held back from training, never on test rows, and with layers that no criterion chose, so that all
    criteria are treated alike.

    Raises:
        LayersiftError: a training failed, since another start might choose otherwise; or none has a score.
    """
    rates = recipe.compare.learning_rates
    if len(rates) < 2:
        rate = Rate(rates[0] if rates else recipe.train.rate(kind), {})
        return {(method, count): rate for method in methods for count in counts}
    cells: dict[tuple[str, int], list[Cell]] = {}
    for method in methods:
        for count in counts:
            mask = random_mask(num_layers, count, recipe.seed)
            train = recipe.train
            cells[method, count] = [
                Cell(mask, recipe.seed, method, rate, train.rank, train.alpha, "validation") for rate in rates
            ]
    every = [Job(cell) for group in cells.values() for cell in group]
    results, failures = run_cells(recipe, every, Path(recipe.output), jobs, reporter, "choosing learning rates")
    if failures:
        cell, why = next(iter(failures.items()))
        raise LayersiftError(f"no learning rate can be chosen while trainings fail: {cell.name}: {why}")
    chosen = {}
    for key, group in cells.items():
        scores = {cell.learning_rate: results[cell].score for cell in group}
        sign = unit_of(next(iter(results[group[0]].metrics))).sign
        known = {rate: sign * score for rate, score in scores.items() if score is not None}
        if not known:
            raise LayersiftError(f"at no learning rate has {key[0]} on {key[1]} layers a score; give others")
        chosen[key] = Rate(max(known, key=lambda rate: known[rate]), scores)
        reporter.say(f"learning rate for {key[1]} layers with {key[0]}: {chosen[key].chosen:g}")
    return chosen


def random_mask(num_layers: int, size: int, seed: int) -> str:
    """A mask of ``size`` layers, drawn by the seed: the first of those that a comparison draws."""
    drawn = np.random.default_rng(seed).choice(num_layers, size, replace=False)
    return mask_of(sorted(drawn.tolist()), num_layers)
