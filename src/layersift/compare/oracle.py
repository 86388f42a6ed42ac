"""`layersift oracle`: every subset of a size trained, and where each criterion's choice stands among them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from layersift.compare.cells import Cell, CellResult, mask_of
from layersift.compare.field import Field, scores_of, sizes_of
from layersift.compare.grid import CELLS, check_jobs, contents_of, open_grid, run_cells
from layersift.compare.rates import choose_rates
from layersift.compare.recipe import Recipe
from layersift.compare.standings import ALL, Entry
from layersift.compare.statistics import unit_of
from layersift.errors import LayersiftError, SelectionError
from layersift.load.blocks import choose_stack, find_stacks
from layersift.load.models import empty_model
from layersift.progress import Reporter
from layersift.provenance import command, machine, versions
from layersift.score import plain

MANY = 500  # subsets, above which a sample has to be asked for


@dataclass(frozen=True)
class Subset:
    """A subset and its score with each seed."""

    mask: str
    scores: tuple[float, ...]
    drawn: bool = True  # False: trained for a criterion's sake, beside a sample of the subsets

    @property
    def mean(self) -> float:
        """Over the seeds; equal means of equal scores in another order are equal, which rounding would not leave."""
        return round(float(np.mean(self.scores)), 12)


@dataclass(frozen=True)
class Placed:
    """Where a criterion's choice stands."""

    criterion: str
    mask: str
    score: float
    percentile: float  # share of the other subsets drawn that it beats, ties by half, from 0 to 100
    lost: float  # to the best subset trained, in the metric's own units; never negative
    place: int  # 1: the best
    among: int  # the subsets drawn, and itself


@dataclass(frozen=True)
class Oracle:
    """What `oracle` found."""

    recipe: Recipe
    metric: str
    size: int
    num_layers: int
    seeds: tuple[int, ...]
    total: int  # subsets there are
    subsets: tuple[Subset, ...]  # those trained with every seed, the best first
    placed: tuple[Placed, ...]
    all_layers: float | None
    learning_rate: float
    noise: float | None  # standard deviation of one subset's score over the seeds
    contents: Mapping[str, Any]  # fingerprints of model and data
    left_out: Mapping[str, str]  # criteria without a place, and masks without a score, and why

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        made = {"recipe": self.recipe.to_json(), "command": command(), "versions": versions(), "machine": machine()}
        return {"schema_version": 1, **made, **{k: v for k, v in asdict(self).items() if k != "recipe"}}


def subsets_of(num_layers: int, size: int, sample: int | None, seed: int) -> list[str]:
    """Masks of all subsets of a size, or of as many drawn by the seed.

    Raises:
        SelectionError: more than can reasonably be trained, and no sample asked for.
    """
    total = math.comb(num_layers, size)
    if sample is None and total > MANY:
        raise SelectionError(f"there are {total:,} subsets of {size} of {num_layers} layers; give --sample")
    if sample is None or sample >= total:
        return [mask_of(layers, num_layers) for layers in itertools.combinations(range(num_layers), size)]
    generator = np.random.default_rng(seed)
    drawn: dict[str, None] = {}
    while len(drawn) < sample:
        drawn[mask_of(sorted(generator.choice(num_layers, size, replace=False).tolist()), num_layers)] = None
    return list(drawn)


def oracle(
    recipe: Recipe, size: int | None = None, sample: int | None = None, jobs: int = 1, reporter: Reporter | None = None
) -> Oracle:
    """Train every subset, and place the criteria among them. Cells are shared with `compare` in the same output.

    Raises:
        LayersiftError: the data, the model, a setting or the output cannot be used; nearly every training failed.
    """
    reporter = reporter or Reporter()
    check_jobs(jobs)
    if sample is not None and sample < 2:
        raise SelectionError(f"sample {sample} is out of range; at least 2 subsets are needed")
    layers = choose_stack(find_stacks(empty_model(recipe.model)), recipe.select.tower).num_layers
    size = sizes_of(recipe, layers)[0] if size is None else size
    if not 0 < size < layers:
        raise SelectionError(f"size {size} is out of range; there are {layers} layers")
    masks = subsets_of(layers, size, sample, recipe.seed)
    seeds = tuple(recipe.seed + i for i in range(recipe.compare.seeds))
    method, train = (recipe.compare.methods or [recipe.train.method])[0], recipe.train
    with open_grid(recipe) as output:
        field = scores_of(recipe, [size], output, reporter)
        rates = choose_rates(recipe, layers, [size], [method], jobs, field.kind, reporter)
        chosen = {
            s.scores.criterion: mask_of(s.layers, layers)
            for s in field.scored
            if s.scores.criterion != plain.RANDOM.name
        }
        wanted = tuple(dict.fromkeys([*masks, *chosen.values()]))
        entry = Entry("subsets", size, method, wanted, rates[method, size].chosen, train.rank, train.alpha)
        everywhere = Entry(ALL, size, method, ("1" * layers,), rates[method, layers].chosen, train.rank, train.alpha)
        cells = [*everywhere.cells(seeds), *entry.cells(seeds)]
        results, failures = run_cells(recipe, cells, output / CELLS, jobs, reporter, "training every subset")
        contents = contents_of(output)
    return place(recipe, field, entry, everywhere, seeds, results, failures, masks, chosen, contents)


def place(
    recipe: Recipe,
    field: Field,
    entry: Entry,
    everywhere: Entry,
    seeds: Sequence[int],
    results: Mapping[Cell, CellResult],
    failures: Mapping[Cell, str],
    drawn: Sequence[str],
    chosen: Mapping[str, str],
    contents: Mapping[str, Any],
) -> Oracle:
    """Subsets by their scores, and the criteria's choices among those drawn. What failed is left out.

    Raises:
        LayersiftError: fewer than two subsets have a score with every seed.
    """
    left_out = dict(field.left_out)

    def scores(which: Entry, mask: str) -> tuple[float, ...] | None:
        found = []
        for cell in (which.cell(mask, seed) for seed in seeds):
            score = results[cell].score if cell in results else None
            if score is None:
                left_out[mask] = failures.get(cell, "its score is undefined")
                return None
            found.append(score)
        return tuple(found)

    of_all = scores(everywhere, everywhere.masks[0])
    known = {mask: found for mask in entry.masks if (found := scores(entry, mask)) is not None}
    subsets = [Subset(mask, found, mask in drawn) for mask, found in known.items()]
    if len(subsets) < 2:
        raise LayersiftError(f"fewer than two subsets could be trained and judged: {next(iter(left_out.values()))}")
    metric = next(iter(next(iter(results.values())).metrics))
    sign = 1 if unit_of(metric).higher_is_better else -1
    subsets.sort(key=lambda s: (-sign * s.mean, s.mask))
    best, means = sign * subsets[0].mean, {s.mask: sign * s.mean for s in subsets}
    placed = []
    for criterion, mask in chosen.items():
        if mask not in means:
            left_out[criterion] = f"its choice {mask} has no score"
            continue
        own = means[mask]
        others = [means[s.mask] for s in subsets if s.drawn and s.mask != mask]
        beaten = sum((v < own) + 0.5 * (v == own) for v in others)
        percentile = 100 * beaten / len(others) if others else 100.0
        above = sum(v > own for v in others)
        placed.append(Placed(criterion, mask, sign * own, percentile, best - own, 1 + above, 1 + len(others)))
    spread = [np.var(s.scores, ddof=1) for s in subsets] if len(seeds) > 1 else []
    return Oracle(
        recipe=recipe,
        metric=metric,
        size=entry.size,
        num_layers=field.stack.num_layers,
        seeds=tuple(seeds),
        total=math.comb(field.stack.num_layers, entry.size),
        subsets=tuple(subsets),
        placed=tuple(sorted(placed, key=lambda p: (p.place, p.criterion))),
        all_layers=None if of_all is None else float(np.mean(of_all)),
        learning_rate=entry.learning_rate,
        noise=float(np.sqrt(np.mean(spread))) if spread else None,
        contents=contents,
        left_out=left_out,
    )
