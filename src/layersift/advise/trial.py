"""A trial of training variants on the user's own rows: successive halving within a fraction of the full training.

All that take part are trained for the same fraction of their own training, each on a schedule of that length. They are
judged on the same held-back rows. The better half goes on, for a larger fraction, until two are left (Karnin, Koren
and Somekh 2013; Jamieson and Talwalkar 2016). Variants without a significant difference stay in the order in which
they are advised untried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from layersift.advise.candidates import Prices
from layersift.config.recipe import Recipe
from layersift.config.train import TrainSettings
from layersift.errors import LayersiftError
from layersift.evaluation.metrics import one_run
from layersift.experiment.cell import Job, Jobs
from layersift.experiment.grid import open_grid, run_cells
from layersift.files import read_number, write_json
from layersift.progress import Reporter, time_told
from layersift.records.runs import Cell, Result, Variant
from layersift.statistics.intervals import Interval, difference, unit_of

FIELDS = (8, 4, 2)  # how many take part: the most of these that can be trained for long enough
FEWEST_STEPS = 30  # in the first round; less says nothing
PACE_FILE = "pace.json"
JUDGED_ON = 500  # held-back rows
BISECTIONS = 30

FlopsOf = Callable[[Variant, float], float]  # of a fraction of a variant's training, by all layers' training


@dataclass(frozen=True)
class Tried:
    """One training variant in one round."""

    name: str
    score: float | None  # None where its training failed
    from_first: Interval | None  # paired difference from the round's first
    steps: int
    why: str = ""  # it failed


@dataclass(frozen=True)
class Round:
    """Those that were trained for the same fraction, the best first."""

    share: float  # of each one's own training
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class Trial:
    """What a trial measured and took."""

    metric: str
    samples: int  # held-back rows
    spent: float  # FLOPs, by those of all layers' training
    seconds: float
    rounds: tuple[Round, ...]

    @property
    def order(self) -> list[str]:
        """Names, the best first: those that came further before those that did not."""
        return list(dict.fromkeys(tried.name for round_ in reversed(self.rounds) for tried in round_.tried))

    def last(self, name: str) -> tuple[Round, Tried] | None:
        """The last round that a variant took part in, and how it did there."""
        for round_ in reversed(self.rounds):
            for tried in round_.tried:
                if tried.name == name:
                    return round_, tried
        return None


def hold_trial(
    recipe: Recipe,
    variants: Sequence[Variant],
    share: float,
    prices: Prices,
    pace: float,
    reporter: Reporter,
    jobs: Jobs = 1,
) -> Trial:
    """Try variants within a fraction of the FLOPs that training all layers takes; what is finished stays.

    Args:
        recipe: whose output the trainings are kept in; its rows are those that the variants are for.
        variants: those that fit, in the order in which they are advised untried; two at least.
        pace: FLOPs a second, by which they fit; kept, so that a trial that is gone on with has the same.
        jobs: what carries the trainings out.

    Raises:
        LayersiftError: the share is not enough for two of them; or all trainings failed.
    """
    samples, flops_of = len(prices.examples), prices.flops
    left = entrants(variants, share, samples, flops_of)
    trial = replace(
        recipe,
        train=_in_the_least_memory(recipe.train, left),
        evaluate=replace(recipe.evaluate, max_samples=JUDGED_ON),
    )
    rounds: list[Round] = []
    done: dict[Cell, Result] = {}
    count, spent = _rounds(len(left)), 0.0
    with open_grid(trial) as output:
        write_json(output / PACE_FILE, {"flops_a_second": pace})
        for number in range(count):
            part = share_within(share / count, left, flops_of)
            cells = {one.name: _cell(one, part, trial) for one in left}
            cost = sum(flops_of(c, part) for c in left)
            about = time_told(cost * prices.whole.flops / pace)
            label = f"trial, round {number + 1} of {count}, {100 * part:.3g}% of each training, about {about} of steps"
            results, failures = run_cells(trial, [Job(cell) for cell in cells.values()], output, jobs, reporter, label)
            scores = {name: results.get(cell) for name, cell in cells.items()}
            why = {name: failures.get(cell, "its score is undefined") for name, cell in cells.items()}
            rounds.append(_round(part, scores, why, {c.name: _shortened(c, part).steps(samples) for c in left}))
            spent += cost
            done |= results
            further = [tried.name for tried in rounds[-1].tried if tried.score is not None][: (len(left) + 1) // 2]
            left = [c for name in further for c in left if c.name == name]
            if len(left) < 2:
                break
    one = next(iter(done.values()))
    seconds = sum(result.train_seconds or 0.0 for result in done.values())
    return Trial(next(iter(one.metrics)), one.samples, spent, seconds, tuple(rounds))


def _round(
    part: float, results: Mapping[str, Result | None], why: Mapping[str, str], steps: Mapping[str, int]
) -> Round:
    """What the trainings of a round gave.

    Raises:
        LayersiftError: none has a score.
    """
    scored = {name: r for name, r in results.items() if r is not None and r.score is not None}
    if not scored:
        raise LayersiftError(f"no training of the trial has a score; the first one: {next(iter(why.values()))}")
    ranked = ranking(scored)
    first = one_run(scored[ranked[0]])
    tried = [
        Tried(n, scored[n].score, None if n == ranked[0] else difference(one_run(scored[n]), first), steps[n])
        for n in ranked
    ]
    return Round(part, (*tried, *(Tried(n, None, None, steps[n], why[n]) for n in results if n not in scored)))


def _rounds(count: int) -> int:
    """Until two are left, and those once."""
    return max(1, math.ceil(math.log2(count)))


def entrants(variants: Sequence[Variant], share: float, samples: int, flops_of: FlopsOf) -> list[Variant]:
    """Those that take part: first one of each kind, in their order; as many as can be trained for long enough.

    Raises:
        LayersiftError: not even two can.
    """
    kinds = [c.kind for c in variants]
    turn = {c.name: kinds[:place].count(c.kind) for place, c in enumerate(variants)}
    by_turn = sorted(variants, key=lambda c: turn[c.name])
    for most in FIELDS:
        taking = by_turn[:most]
        part = share_within(share / _rounds(len(taking)), taking, flops_of)
        if all(_long_enough(c, part, samples) for c in taking):
            return sorted(taking, key=variants.index)
    two = by_turn[:2]
    enough = next(
        (p for p in np.geomspace(1e-4, 1.0, 200).tolist() if all(_long_enough(c, p, samples) for c in two)), 1.0
    )
    needed = math.ceil(100 * sum(flops_of(c, enough) for c in two))
    raise LayersiftError(
        f"trial {100 * share:g}%: that is less than {FEWEST_STEPS} steps for each of two training variants; "
        f"{needed}% would be enough"
    )


def _long_enough(variant: Variant, part: float, samples: int) -> bool:
    return part > 0 and _shortened(variant, part).steps(samples) >= min(FEWEST_STEPS, variant.train.steps(samples))


def share_within(budget: float, variants: Sequence[Variant], flops_of: FlopsOf) -> float:
    """The largest share of their trainings that all of the variants together can be given within some FLOPs."""

    def fits(part: float) -> bool:
        return sum(flops_of(one, part) for one in variants) <= budget

    if fits(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _shortened(variant: Variant, part: float) -> TrainSettings:
    return replace(variant.train, epochs=variant.train.num_epochs * part)


def _cell(variant: Variant, part: float, recipe: Recipe) -> Cell:
    """A part of a variant's training, in the batches of the trial."""
    settings = replace(
        _shortened(variant, part),
        batch_size=recipe.train.batch_size,
        gradient_accumulation=recipe.train.gradient_accumulation,
        gradient_checkpointing=recipe.train.gradient_checkpointing,
    )
    return replace(variant, train=settings).cell(recipe.seed)


def _in_the_least_memory(train: TrainSettings, variants: Sequence[Variant]) -> TrainSettings:
    """Small batches and checkpointing for all where one needs them, which changes no training but by rounding."""
    smallest = min((c.train for c in variants), key=lambda settings: settings.batch_size)
    return replace(
        train,
        batch_size=smallest.batch_size,
        gradient_accumulation=smallest.gradient_accumulation,
        gradient_checkpointing=any(c.train.gradient_checkpointing for c in variants),
    )


def ranking(scored: Mapping[str, Result]) -> list[str]:
    """Names, the best first: what cannot be told from the best one stays in its order, before what is worse."""
    signed = {name: unit_of(next(iter(r.metrics))).sign * (r.score or 0.0) for name, r in scored.items()}
    best = one_run(scored[max(signed, key=lambda name: signed[name])])
    apart = {name: difference(one_run(result), best) for name, result in scored.items()}
    alike = [name for name, interval in apart.items() if interval is None or interval.holds_zero]
    return [*alike, *sorted((name for name in scored if name not in alike), key=lambda name: -signed[name])]


def trial_place(output: Path) -> Path:
    """Where a trial's trainings are kept until the advice is written."""
    return output.with_name(f"{output.name}.trial")


def kept_pace(place: Path) -> float | None:
    """That of a trial that was begun there; None where none was."""
    path = place / PACE_FILE
    if not path.is_file():
        return None
    pace = read_number(path, "flops_a_second")
    if pace == 0:
        raise LayersiftError(f"{path}: flops_a_second is 0; remove {place}, and the trial begins anew")
    return pace
