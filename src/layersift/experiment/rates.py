"""The learning rate of each row of a comparison, chosen without looking at test rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from layersift.config.defaults import Trained, default_rate, hidden_size
from layersift.config.inputs import TaskKind
from layersift.config.recipe import Recipe
from layersift.errors import LayersiftError
from layersift.evaluation.metrics import one_run
from layersift.experiment.cell import Job, Jobs
from layersift.experiment.grid import run_cells
from layersift.models.load import load_config
from layersift.progress import Reporter
from layersift.records.result import Cell, Result, Variant
from layersift.select.layers import draw_masks
from layersift.statistics.intervals import difference
from layersift.statistics.verdicts import unit_of

FURTHER = 3  # rates that are tried beyond either end of those given
TOO_HIGH = 10  # which no training may have
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
    jobs: Jobs,
    reporter: Reporter,
    rows: Collection[str] = (),
) -> dict[tuple[str, int], Rate]:
    """The learning rate for each method and number of layers, chosen with random layers; see :func:`tune`.

    Random layers treat all criteria alike, so they are drawn from the masks that no row of the table has.

    Args:
        rows: the masks of the table's rows.
    """
    train, seed = recipe.train, recipe.seed
    masks = tuning_masks(counts, num_layers, seed, rows)
    if len(recipe.compare.learning_rates) > 1:
        for count, mask in masks.items():
            if mask in rows and count < num_layers:
                reporter.say(f"every choice of {count} layers is a row; the learning rate is chosen with {mask}")
    keys = [(method, count) for method in methods for count in counts]
    cells = {
        of_size(method, count): Cell(masks[count], seed, replace(train, method=method), "validation")
        for method, count in keys
    }
    rates = tune(recipe, cells, kind, jobs, reporter)
    return {(method, count): rates[of_size(method, count)] for method, count in keys}


def tuning_masks(counts: Sequence[int], num_layers: int, seed: int, rows: Collection[str] = ()) -> dict[int, str]:
    """The random mask that a learning rate is chosen with, by its number of layers; none of ``rows`` if others remain.

    A rate that suits one row's layers would favour that row.
    """
    return {count: draw_masks(num_layers, count, 1, seed, rows)[0] for count in counts}


def of_size(method: str, count: int) -> str:
    """What a rate for a method and a number of layers is called."""
    return f"{method}, {count} layers"


def tune(recipe: Recipe, cells: Mapping[str, Cell], kind: TaskKind, jobs: Jobs, reporter: Reporter) -> dict[str, Rate]:
    """The learning rate for each of some cells by name, judged on rows held back from training, never on test rows.

    Where the best rate is the lowest or highest one, further ones are tried. A paired test over the rows says which
    rates tie with a cell's best. All cells of a method have one rate where one ties with the best of each: the one of
    the best mean. Otherwise each cell has its own best.

    Raises:
        LayersiftError: a training failed otherwise than by diverging, since another start might choose otherwise; or
            none has a score.
    """
    given = sorted(recipe.compare.learning_rates)
    if len(given) < 2:
        if given:
            return {key: Rate(given[0], {}) for key in cells}
        width = hidden_size(load_config(recipe.model))
        return {key: Rate(rate_of(recipe, cell, kind, width), {}) for key, cell in cells.items()}
    grids: dict[str, list[float]] = {key: list(given) for key in cells}
    for round_ in range(2 * FURTHER + 1):
        wanted = {key: [cells[key].with_settings(learning_rate=rate) for rate in grids[key]] for key in cells}
        results = _trained(recipe, [cell for group in wanted.values() for cell in group], jobs, reporter)
        tried = {
            key: {rate: results.get(cell) for rate, cell in zip(grids[key], group, strict=True)}
            for key, group in wanted.items()
        }
        best = {key: _best(of, key) for key, of in tried.items()}
        further = {key: _beyond(grids[key], best[key], given) for key in cells}
        if round_ == 2 * FURTHER or not any(further.values()):
            break
        grids = {key: sorted([*grids[key], *further[key]]) for key in cells}
    chosen: dict[str, Rate] = {}
    for method in dict.fromkeys(cell.train.method for cell in cells.values()):
        chosen |= _choose({key: of for key, of in tried.items() if cells[key].train.method == method}, best)
    for key, rate in chosen.items():
        alike = f"; no significant difference: {', '.join(f'{r:g}' for r in rate.alike)}" if len(rate.alike) > 1 else ""
        reporter.say(f"learning rate for {key}: {rate.chosen:g}{alike}")
    return chosen


def rate_of(recipe: Recipe, variant: Cell | Variant, kind: TaskKind, width: int) -> float:
    """What is trained at where no rate is tuned: the recipe's rate, or the default of the model's width, its layers
    and rank."""
    trained = Trained(kind, width, len(variant.layers), len(variant.mask))
    return recipe.train.named_rate or default_rate(variant.train, trained)


def _trained(recipe: Recipe, cells: Sequence[Cell], jobs: Jobs, reporter: Reporter) -> dict[Cell, Result]:
    """Results, those that diverged apart."""
    wanted = [Job(cell) for cell in cells]
    results, failures = run_cells(recipe, wanted, Path(recipe.output), jobs, reporter, "choosing learning rates")
    for cell, why in failures.items():
        if DIVERGED not in why:
            raise LayersiftError(f"no learning rate can be chosen while trainings fail: {cell}: {why}")
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
        higher = float(f"{best * given[-1] / given[-2]:.3g}")
        return [higher] if higher < TOO_HIGH else []
    return []


def _choose(tried: Mapping[str, Mapping[float, Result | None]], best: Mapping[str, float]) -> dict[str, Rate]:
    """One rate for all cells where one ties with the best of each, otherwise each cell's own best."""
    scored = {
        key: {rate: r for rate, r in of.items() if r is not None and r.score is not None} for key, of in tried.items()
    }
    ties = {
        key: [rate for rate, r in of.items() if rate == best[key] or _cannot_be_told(of[best[key]], r)]
        for key, of in scored.items()
    }
    shared = sorted(set.intersection(*map(set, ties.values())))

    def total(rate: float) -> float:
        return sum(_signed(of[rate]) for of in scored.values())

    common = max(shared, key=total) if shared else None
    return {
        key: Rate(
            best[key] if common is None else common,
            {rate: None if r is None else r.score for rate, r in of.items()},
            tuple(sorted(ties[key])),
        )
        for key, of in tried.items()
    }


def _cannot_be_told(best: Result, other: Result) -> bool:
    """Whether the paired difference over the rows held back holds zero; of other metrics only equal scores do."""
    apart = difference(one_run(best), one_run(other))
    return best.score == other.score if apart is None or apart.low is None else apart.holds_zero
