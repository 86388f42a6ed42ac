"""The learning rate of each row of a comparison, chosen without looking at test rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from layersift.config.data import TaskKind
from layersift.config.defaults import Trained, default_rate, hidden_size
from layersift.config.recipe import Recipe
from layersift.errors import LayersiftError
from layersift.evaluation.metrics import MEANS
from layersift.experiment.cell import Job, settings_of
from layersift.experiment.grid import run_cells
from layersift.load.models import load_config
from layersift.progress import Reporter
from layersift.records.result import Cell, Result
from layersift.records.scores import mask_of
from layersift.statistics.intervals import Runs, difference
from layersift.statistics.verdicts import limits_of, unit_of

FURTHER = 3  # rates that are tried beyond either end of those given
DIVERGED = "training diverged"  # as a training that did says it


@dataclass(frozen=True)
class Rate:
    """A learning rate, and what it and the others came to on the rows held back."""

    chosen: float
    scores: Mapping[float, float | None]  # of each rate tried; None where the training diverged; none for one alone
    alike: tuple[float, ...] = ()  # that cannot be told from the best one on these rows, it included

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
    """The learning rate for each method and number of layers, by how well it trains *random* layers, so that all
    criteria are treated alike; see :func:`tune`."""
    train, seed = recipe.train, recipe.seed
    masks = {count: random_mask(num_layers, count, seed) for count in counts}
    keys = [(method, count) for method in methods for count in counts]
    cells = {
        of_size(method, count): Cell(masks[count], seed, method, 0.0, train.rank, train.alpha, "validation")
        for method, count in keys
    }
    rates = tune(recipe, cells, kind, jobs, reporter)
    return {(method, count): rates[of_size(method, count)] for method, count in keys}


def of_size(method: str, count: int) -> str:
    """What a rate for a method and a number of layers is called."""
    return f"{method}, {count} layers"


def tune(recipe: Recipe, cells: Mapping[str, Cell], kind: TaskKind, jobs: int, reporter: Reporter) -> dict[str, Rate]:
    """The learning rate for each of some cells by name, judged on rows held back from training, never on test rows.

    Where the best rate is the lowest or highest one, further ones are tried. Of those that cannot be told from the best
    by a paired test over the rows, the one is taken that lies nearest to what is best for the other cells: a tie does
    not decide.

    Raises:
        LayersiftError: a training failed otherwise than by diverging, since another start might choose otherwise; or
            none has a score.
    """
    given = sorted(recipe.compare.learning_rates)
    if len(given) < 2:
        rates = {key: given[0] if given else _default_rate(recipe, cell, kind) for key, cell in cells.items()}
        return {key: Rate(rate, {}) for key, rate in rates.items()}
    grids: dict[str, list[float]] = {key: list(given) for key in cells}
    for round_ in range(2 * FURTHER + 1):
        wanted = {key: [replace(cells[key], learning_rate=rate) for rate in grids[key]] for key in cells}
        results = _trained(recipe, [cell for group in wanted.values() for cell in group], jobs, reporter)
        tried = {key: {c.learning_rate: results.get(c) for c in group} for key, group in wanted.items()}
        best = {key: _best(of, key) for key, of in tried.items()}
        further = {key: _beyond(grids[key], best[key], given) for key in cells}
        if round_ == 2 * FURTHER or not any(further.values()):
            break
        grids = {key: sorted([*grids[key], *further[key]]) for key in cells}
    chosen = {key: _chosen(of, best[key], _usual(best, key)) for key, of in tried.items()}
    for key, rate in chosen.items():
        alike = f"; {', '.join(f'{r:g}' for r in rate.alike)} cannot be told apart" if len(rate.alike) > 1 else ""
        reporter.say(f"learning rate for {key}: {rate.chosen:g}{alike}")
    return chosen


def _default_rate(recipe: Recipe, cell: Cell, kind: TaskKind) -> float:
    """What a cell is trained at where nobody names a rate."""
    width = hidden_size(load_config(recipe.model))
    trained = Trained(kind, width, len(cell.layers), len(cell.mask))
    settings = settings_of(cell, recipe.train)
    return recipe.train.learning_rate or default_rate(settings, trained)


def _trained(recipe: Recipe, cells: Sequence[Cell], jobs: int, reporter: Reporter) -> dict[Cell, Result]:
    """Results, those that diverged apart."""
    wanted = [Job(cell) for cell in cells]
    results, failures = run_cells(recipe, wanted, Path(recipe.output), jobs, reporter, "choosing learning rates")
    for cell, why in failures.items():
        if DIVERGED not in why:
            raise LayersiftError(f"no learning rate can be chosen while trainings fail: {cell.name}: {why}")
    return results


def _best(tried: Mapping[float, Result | None], of: str) -> float:
    known = {rate: _signed(r) for rate, r in tried.items() if r is not None and r.score is not None}
    if not known:
        raise LayersiftError(f"at no learning rate is there a score for {of}; give others")
    return max(known, key=lambda rate: known[rate])


def _signed(result: Result) -> float:
    return unit_of(next(iter(result.metrics))).sign * (result.score or 0.0)


def _beyond(grid: Sequence[float], best: float, given: Sequence[float]) -> list[float]:
    """The next rate beyond the end at which the best one lies, if it does and not too many have been tried there."""
    if best == grid[0] and len([rate for rate in grid if rate < given[0]]) < FURTHER:
        return [float(f"{best * given[0] / given[1]:.3g}")]
    if best == grid[-1] and len([rate for rate in grid if rate > given[-1]]) < FURTHER:
        return [float(f"{best * given[-1] / given[-2]:.3g}")]
    return []


def _usual(best: Mapping[str, float], key: str) -> float:
    """The logarithm of the rate that is best for the others."""
    others = [rate for other, rate in best.items() if other != key] or [best[key]]
    return statistics.median(math.log(rate) for rate in others)


def _chosen(tried: Mapping[float, Result | None], best: float, usual: float) -> Rate:
    known = {rate: r for rate, r in tried.items() if r is not None and r.score is not None}
    alike = [rate for rate, result in known.items() if rate == best or _cannot_be_told(known[best], result)]
    chosen = min(alike, key=lambda rate: (round(abs(math.log(rate) - usual), 9), -_signed(known[rate])))
    return Rate(chosen, {rate: None if r is None else r.score for rate, r in tried.items()}, tuple(sorted(alike)))


def _cannot_be_told(best: Result, other: Result) -> bool:
    """Whether the paired difference over the rows held back holds zero; of other metrics only equal scores do."""
    apart = difference(one_run(best), one_run(other))
    return best.score == other.score if apart is None or apart.low is None else apart.holds_zero


def one_run(result: Result) -> Runs:
    """A result for comparisons over its samples."""
    metric = next(iter(result.metrics))
    outcomes = np.array(result.outcomes)
    averages = metric.split()[0] in MEANS
    return Runs({0: result.score or 0.0}, {0: outcomes}, averages, result.weights, limits=limits_of(metric))


def random_mask(num_layers: int, size: int, seed: int) -> str:
    """A mask of ``size`` layers, drawn by the seed: the first of those that a comparison draws."""
    drawn = np.random.default_rng(seed).choice(num_layers, size, replace=False)
    return mask_of(sorted(drawn.tolist()), num_layers)
