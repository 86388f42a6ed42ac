"""`layersift oracle`: every subset of a size trained, and where each criterion's choice stands among them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from layersift.config.fields import json_values
from layersift.config.quantities import mask_of
from layersift.config.recipe import Recipe
from layersift.errors import LayersiftError, SelectionError
from layersift.evaluation.metrics import Majority
from layersift.experiment.cell import Job, Jobs
from layersift.experiment.choices import ALL, BASE, Choice
from layersift.experiment.grid import contents_of, open_grid, require_jobs, run_cells
from layersift.experiment.judge import Trained, nothing_learned
from layersift.experiment.prepare import checked, scoring_of, sizes_of
from layersift.experiment.rates import choose_rates
from layersift.progress import Reporter
from layersift.provenance import made_by
from layersift.records.runs import Variant
from layersift.score.criteria import plain

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
    subsets: tuple[Subset, ...]  # those trained with every seed, the best first; by mask where nothing was learned
    placed: tuple[Placed, ...]
    all_layers: float | None
    learning_rate: float  # of the subsets
    all_layers_learning_rate: float
    noise: float | None  # standard deviation of one subset's score over the seeds
    contents: Mapping[str, Any]  # fingerprints of model and data
    left_out: Mapping[str, str]  # criteria without a place, and masks without a score, and why
    majority: Majority | None = None  # of a classification
    nothing_learned: str | None = None  # that no subset beats what needs no training; then nothing is ranked

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "recipe"}
        own: dict[str, Any] = json_values(values)
        return {"schema_version": 2, **own, "recipe": self.recipe.to_json(), **made_by()}


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
    recipe: Recipe, size: int | None = None, sample: int | None = None, jobs: Jobs = 1, reporter: Reporter | None = None
) -> Oracle:
    """Train every subset, and place the criteria among them. Cells are shared with `compare` in the same output.

    Raises:
        LayersiftError: the data, the model, a setting or the output cannot be used; nearly every training failed.
    """
    reporter = reporter or Reporter()
    require_jobs(jobs)
    if sample is not None and sample < 2:
        raise SelectionError(f"sample {sample} is out of range; at least 2 subsets are needed")
    recipe, layers, prepared = checked(recipe, reporter)
    size = sizes_of(recipe, layers)[0] if size is None else size
    if not 0 < size < layers:
        raise SelectionError(f"size {size} is out of range; there are {layers} layers")
    drawn = subsets_of(layers, size, sample, recipe.seed)
    seeds = recipe.seeds
    method = (recipe.compare.methods or [recipe.train.method])[0]
    train = replace(recipe.train, method=method)
    with open_grid(recipe, prepared=prepared) as output:
        scoring = scoring_of(recipe, prepared, [size], output, reporter)
        chosen = {
            s.scores.criterion: mask_of(s.layers, layers)
            for s in scoring.scored
            if s.scores.criterion != plain.RANDOM.name
        }
        rows = set(chosen.values())
        rates = choose_rates(recipe, [size, layers], layers, [method], scoring.kind, jobs, reporter, rows)
        wanted = tuple(dict.fromkeys([*drawn, *chosen.values()]))
        at = {count: replace(train, learning_rate=rates[method, count].chosen) for count in (size, layers)}
        subsets = Choice.of("subsets", size, wanted, at[size])
        everywhere = Choice.of(ALL, size, ["1" * layers], at[layers])
        # What a classification has to beat is known; of other tasks it is the base model.
        base = [] if prepared.majority else [Choice.of(BASE, size, [""], train)]
        jobs_wanted = [Job(cell) for choice in (everywhere, *base, subsets) for cell in choice.cells(seeds)]
        results, failures = run_cells(recipe, jobs_wanted, output, jobs, reporter, "training every subset")
        contents = contents_of(output)
    trained = Trained(seeds, results, failures)
    left_out = dict(scoring.left_out)
    of_all = _scores(everywhere.variants[0], trained, left_out)
    trained_subsets = rank_subsets(subsets, trained, drawn, left_out)
    single = [replace(subsets, variants=(variant,)) for variant in subsets.variants]
    nothing = nothing_learned([everywhere, *base, *single], trained, prepared.majority)
    if nothing is not None:
        trained_subsets = tuple(sorted(trained_subsets, key=lambda s: s.mask))
        left_out |= {
            name: f"nothing was learned, so that its choice {mask} has no place" for name, mask in chosen.items()
        }
    return Oracle(
        recipe=recipe,
        metric=trained.metric,
        size=size,
        num_layers=layers,
        seeds=seeds,
        total=math.comb(layers, size),
        subsets=trained_subsets,
        placed=() if nothing else place(chosen, trained_subsets, trained.unit.sign, left_out),
        all_layers=None if of_all is None else float(np.mean(of_all)),
        learning_rate=rates[method, size].chosen,
        all_layers_learning_rate=rates[method, layers].chosen,
        noise=_noise(trained_subsets, seeds),
        contents=contents,
        left_out=left_out,
        majority=prepared.majority,
        nothing_learned=nothing,
    )


def _scores(variant: Variant, trained: Trained, left_out: dict[str, str]) -> tuple[float, ...] | None:
    """The score of a variant with every seed; where one is missing, why is added to ``left_out``."""
    scores = []
    for seed in trained.seeds:
        score = trained.score(variant, seed)
        if score is None:
            left_out[variant.mask] = trained.failures.get(variant.cell(seed), "its score is undefined")
            return None
        scores.append(score)
    return tuple(scores)


def rank_subsets(
    choice: Choice, trained: Trained, drawn: Sequence[str], left_out: dict[str, str]
) -> tuple[Subset, ...]:
    """The subsets that have a score with every seed, the best first; the others are added to ``left_out``.

    Raises:
        LayersiftError: fewer than two have.
    """
    scores = {variant.mask: _scores(variant, trained, left_out) for variant in choice.variants}
    known = {mask: of_mask for mask, of_mask in scores.items() if of_mask is not None}
    if len(known) < 2:
        raise LayersiftError(f"fewer than two subsets could be trained and judged: {next(iter(left_out.values()))}")
    subsets = [Subset(mask, of_mask, mask in drawn) for mask, of_mask in known.items()]
    return tuple(sorted(subsets, key=lambda s: (-trained.unit.sign * s.mean, s.mask)))


def place(
    chosen: Mapping[str, str], subsets: Sequence[Subset], sign: int, left_out: dict[str, str]
) -> tuple[Placed, ...]:
    """Where the criteria's choices stand among the subsets drawn; those without a score are added to ``left_out``.

    Args:
        chosen: each criterion's mask.
        subsets: the best first.
        sign: 1 where high scores are better, -1 where low ones are.
    """
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
    return tuple(sorted(placed, key=lambda p: (p.place, p.criterion)))


def _noise(subsets: Sequence[Subset], seeds: Sequence[int]) -> float | None:
    """Standard deviation of one subset's score over the seeds; None where there is but one."""
    if len(seeds) < 2:
        return None
    return float(np.sqrt(np.mean([np.var(s.scores, ddof=1) for s in subsets])))
