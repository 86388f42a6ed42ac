"""Racing: a row of a comparison trains no further seeds once its verdict is settled.

After each seed from the third on, a row's paired differences from all layers and from random ones say how likely
further seeds are to change its verdict. Where that is hardly likely the row stops; its figures are those of the seeds
that it has. Seeds are whole trainings, so that nothing is judged half-trained and a killed race goes on as it began.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
from scipy.special import stdtr

from layersift.config.variants import FEWEST
from layersift.experiment.choices import ALL, RANDOM, Choice, Key
from layersift.experiment.judge import Trained, runs_of
from layersift.records.runs import Cell, Result
from layersift.statistics.intervals import Interval, Runs, difference

HELD_AGAINST = (ALL, RANDOM)
COMMON = 4  # seeds that the spread of all rows counts as, beside a row's own
WRONG = 0.05  # the chance of another verdict at which a row stops, at each look

Train = Callable[[Sequence[Choice], int], tuple[Mapping[Cell, Result], Mapping[Cell, str]]]


def race(choices: Sequence[Choice], seeds: Sequence[int], train: Train) -> Trained:
    """Train one seed after the other, of the rows whose verdict is not settled and of those they are held against.

    Args:
        train: carries out the rows' trainings with a seed: results, and why some failed.

    Returns:
        The trainings, and after how many seeds each row stopped.
    """
    results: dict[Cell, Result] = {}
    failures: dict[Cell, str] = {}
    ended: set[Key] = set()  # rows that need no further seeds
    asked: dict[int, set[Cell]] = {}  # by seed
    for place, seed in enumerate(seeds):
        rivals = [c for c in choices if c.name not in HELD_AGAINST and c.key not in ended]
        tables = {choice.table for choice in rivals}
        if place >= FEWEST:
            others = [c for c in choices if c.name in HELD_AGAINST and c.table not in tables]
            ended |= {choice.key for choice in others}
        running = [choice for choice in choices if choice.key not in ended]
        if not running:
            break
        asked[seed] = {cell for choice in running for cell in choice.cells([seed])}
        done, failed = train(running, seed)
        results.update(done)
        failures.update(failed)
        known = place + 1
        if FEWEST <= known < len(seeds):
            so_far = Trained(tuple(seeds[:known]), results, failures)
            spreads = {table: _common_spread(running, so_far, table) for table in tables}
            settled = [c for c in rivals if _is_settled(c, choices, so_far, len(seeds), spreads[c.table])]
            ended |= {choice.key for choice in settled}
    counts = {c.key: sum(asked[seed].issuperset(c.cells([seed])) for seed in asked) for c in choices}
    stopped = {key: count for key, count in counts.items() if count < len(seeds)}
    return Trained(tuple(asked), results, failures, stopped, len(seeds))


def _is_settled(choice: Choice, choices: Sequence[Choice], trained: Trained, seeds: int, spread: float) -> bool:
    """Whether both of a row's verdicts are."""
    own = set(choice.cells(trained.seeds))
    peers = [c for c in choices if c.table == choice.table and c.name in HELD_AGAINST]
    references = [c for c in peers if own != set(c.cells(trained.seeds))]
    if not own <= set(trained.results) or len(runs_of(choice, trained).scores) < len(trained.seeds):
        return False  # some failed, or have no score
    if not references:
        return len(peers) > 0  # the same trainings as all that it would be held against
    runs = runs_of(choice, trained)
    return all(chance_of_another(runs, runs_of(c, trained), seeds, spread) <= WRONG for c in references)


def _common_spread(choices: Sequence[Choice], trained: Trained, table: object) -> float:
    """Of seeds, in the differences of a table's rows from what they are held against: the root of the mean variance."""
    rows = {c: runs_of(c, trained) for c in choices if c.table == table}
    whole = {c: runs for c, runs in rows.items() if len(runs.scores) == len(trained.seeds)}
    variances = [
        float(np.var([runs.scores[seed] - other.scores[seed] for seed in trained.seeds], ddof=1))
        for choice, runs in whole.items()
        for against, other in whole.items()
        if choice.name not in HELD_AGAINST and against.name in HELD_AGAINST
    ]
    return math.sqrt(float(np.mean(variances))) if variances else math.inf


def chance_of_another(runs: Runs, reference: Runs, seeds: int, common: float) -> float:
    """The probability that the difference's verdict (better, worse, not significant) is another one after all seeds.

    The mean of the remaining seeds' differences is drawn by Student's t around that of the known ones; the interval
    then is as wide as if the remaining seeds spread as the known ones do.

    Args:
        runs, reference: with the seeds so far, at least two.
        seeds: how many there will be.
        common: the standard deviation of such differences over seeds, of all rows of the table; it counts as four
            seeds more, since that of three seeds is hardly known.
    """
    known = [seed for seed in runs.scores if seed in reference.scores]
    now, later = (
        difference(runs, reference),
        difference(_repeated(runs, known, seeds), _repeated(reference, known, seeds)),
    )
    if len(known) < 2 or now is None or later is None or now.low is None or later.half_width is None:
        return 1.0
    if _word(now) != _word(later):
        return 1.0
    apart = np.array([runs.scores[seed] - reference.scores[seed] for seed in known])
    rows = len(next(iter(runs.outcomes.values()), ()))
    freedom, value, edge = COMMON + len(known) - 1, abs(now.value), later.half_width
    variance = (COMMON * common**2 + (len(known) - 1) * float(apart.var(ddof=1))) / freedom
    spread = max(math.sqrt(variance), 0.5 / max(rows, 1))  # seeds that agree by chance are not without spread
    moves = spread * math.sqrt((seeds - len(known)) / (seeds * len(known)))
    if _word(now) == 0:
        return float(stdtr(freedom, (value - edge) / moves) + stdtr(freedom, -(value + edge) / moves))
    return float(stdtr(freedom, (edge - value) / moves))


def _word(interval: Interval) -> int:
    """1 where a difference is significantly above zero, -1 below it, else 0."""
    return 0 if interval.holds_zero else 1 if interval.value > 0 else -1


def _repeated(runs: Runs, known: Sequence[int], seeds: int) -> Runs:
    """Runs whose known seeds are repeated until there are as many as there will be."""
    several = list(islice(cycle(known), seeds))
    scores = {place: runs.scores[seed] for place, seed in enumerate(several)}
    outcomes = {place: runs.outcomes[seed] for place, seed in enumerate(several)}
    return replace(runs, scores=scores, outcomes=outcomes)
