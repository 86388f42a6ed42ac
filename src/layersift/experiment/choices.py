"""The rows of an experiment's tables: choices of layers, and the cells that stand behind each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layersift.adapt.methods import has_rank
from layersift.config.arms import UNTOUCHED as UNTOUCHED
from layersift.config.recipe import Recipe
from layersift.experiment.rates import Rate
from layersift.experiment.scoring import Scoring
from layersift.records.result import Cell
from layersift.records.scores import mask_of
from layersift.score.criteria import plain

RANDOM, ALL, MATCHED = "random", "all", "all, matched rank"


@dataclass(frozen=True)
class Choice:
    """A choice of layers: a row of a table, and which trainings stand behind it."""

    name: str
    size: int
    method: str
    masks: tuple[str, ...]  # several for random layers; empty digits where nothing is trained
    learning_rate: float
    rank: int
    alpha: float
    scoring_seconds: float | None = None

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Its cells, for each seed."""
        return [self.cell(mask, seed) for seed in seeds for mask in self.masks]

    def cell(self, mask: str, seed: int) -> Cell:
        """The cell of a mask and a seed."""
        if not mask:
            return Cell("", seed)
        return Cell(mask, seed, self.method, self.learning_rate, self.rank, self.alpha)


def choices_of(
    recipe: Recipe,
    scoring: Scoring,
    sizes: Sequence[int],
    methods: Sequence[str],
    rates: Mapping[tuple[str, int], Rate],
) -> list[Choice]:
    """The rows of all tables of a comparison: criteria, and what they are held against."""
    layers, train = scoring.stack.num_layers, recipe.train
    found = []
    for method in methods:
        for size in sizes:
            rate, of_all = rates[method, size].chosen, rates[method, layers].chosen
            for scored in (s for s in scoring.scored if s.size == size):
                if scored.scores.criterion == plain.RANDOM.name:
                    continue
                mask, seconds = mask_of(scored.layers, layers), scored.scores.seconds
                name = scored.scores.criterion
                found.append(Choice(name, size, method, (mask,), rate, train.rank, train.alpha, seconds))
            draws = random_masks(layers, size, recipe.compare.random, recipe.seed)
            everywhere = ("1" * layers,)
            found += [
                Choice(RANDOM, size, method, draws, rate, train.rank, train.alpha),
                Choice(ALL, size, method, everywhere, of_all, train.rank, train.alpha),
            ]
            if has_rank(method) and not train.ranks and "r" not in train.method_options:
                rank = max(1, round(train.rank * size / layers))
                alpha = train.alpha * rank / train.rank  # so that updates are scaled as in the other rows
                found.append(Choice(MATCHED, size, method, everywhere, of_all, rank, alpha))
            found.append(Choice(UNTOUCHED, size, method, ("",), 0.0, train.rank, train.alpha))
    return found


def random_masks(num_layers: int, size: int, draws: int, seed: int) -> tuple[str, ...]:
    """Different masks of ``size`` layers, drawn by the seed; as many as there are, at most ``draws``."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    for _ in range(50 * draws):
        if len(found) < draws:
            found[mask_of(sorted(generator.choice(num_layers, size, replace=False).tolist()), num_layers)] = None
    return tuple(found)
