"""Racing: which rows stop, after how many seeds, and how likely further seeds would have changed their verdict."""

import numpy as np
import pytest

from layersift.experiment import race as module
from layersift.experiment.choices import ALL, RANDOM
from layersift.experiment.judge import judge
from layersift.experiment.race import chance_of_another, race
from layersift.records.runs import Result
from layersift.statistics.intervals import Runs, difference
from variants import choice_of

SEEDS, SAMPLES = tuple(range(8)), 400
CHOICES = [choice_of(ALL, 2, ["1111"]), choice_of(RANDOM, 2, ["1010", "0110"])]
CHOICES += [choice_of("bad", 2, ["1100"]), choice_of("edge", 2, ["0011"])]
ACCURACY = {"1111": 0.9, "1010": 0.9, "0110": 0.9, "1100": 0.4, "0011": 0.86}


def result_of(cell):
    rng = np.random.default_rng([cell.seed, int(cell.mask, 2)])
    easy = np.random.default_rng(0).random(SAMPLES)  # the same rows are hard for all
    outcomes = (easy < ACCURACY[cell.mask] + rng.normal(0, 0.01)).astype(float)
    return Result(cell, {"accuracy test": float(outcomes.mean())}, SAMPLES, outcomes=tuple(outcomes))


def train_counting(asked, fail=()):
    def train(some, seed):
        cells = dict.fromkeys(cell for choice in some for cell in choice.cells([seed]))
        asked.extend(cells)
        failed = {cell: "no luck" for cell in cells if cell.mask in fail}
        return {cell: result_of(cell) for cell in cells if cell not in failed}, failed

    return train


def test_a_row_that_is_far_worse_stops_first_and_the_references_with_the_last_row():
    asked = []
    trained = race(CHOICES, SEEDS, train_counting(asked))
    seeds = {mask: [cell.seed for cell in asked if cell.mask == mask] for mask in ACCURACY}
    assert seeds["1100"] == [0, 1, 2]
    last = max(len(seeds["0011"]), 3)
    assert 3 <= last <= len(SEEDS)
    assert [len(seeds[mask]) for mask in ("1111", "1010", "0110", "0011")] == [last] * 4
    assert trained.seeds == SEEDS[:last]
    rows = {row.choice.name: row for row in judge(CHOICES, trained)}
    assert rows["bad"].settled == "settled after 3 of 8 seeds"
    assert not any(row.short for row in rows.values())
    assert "worse than all by" in rows["bad"].verdict
    assert list(rows["bad"].scores) == [0, 1, 2]
    assert rows["bad"].from_all.over == f"3 seeds and {SAMPLES} test samples"


def test_a_row_whose_verdict_is_open_trains_on(monkeypatch):
    monkeypatch.setattr(module, "chance_of_another", lambda *_: 0.06)
    asked = []
    trained = race(CHOICES, SEEDS, train_counting(asked))
    assert len(asked) == len(SEEDS) * len(ACCURACY)
    assert not trained.settled
    monkeypatch.setattr(module, "chance_of_another", lambda *_: 0.05)
    assert race(CHOICES, SEEDS, train_counting([])).seeds == SEEDS[:3]


def test_a_row_with_a_failed_training_is_never_settled_and_says_so():
    asked = []
    trained = race(CHOICES, SEEDS, train_counting(asked, fail={"1100"}))
    assert trained.seeds == SEEDS
    bad = next(row for row in judge(CHOICES, trained) if row.choice.name == "bad")
    assert bad.verdict == "failed"
    assert bad.failures == ("no luck",)


def drawn(seeds, true, spread, rng):
    easy = rng.random(SAMPLES)
    outcomes = {}
    for seed in range(seeds):
        outcomes[seed] = (easy < 0.8 - true + rng.normal(0, spread)).astype(float)
    return Runs({s: o.mean() for s, o in outcomes.items()}, outcomes, True, asked=8)


@pytest.mark.parametrize(("true", "seed"), [(0.0, 0), (0.03, 1), (0.06, 2), (0.2, 3)])
def test_the_chance_is_that_of_drawn_further_seeds(true, seed):
    rng, known, seeds, common = np.random.default_rng(seed), 4, 8, 0.03
    row, whole = drawn(known, true, 0.03, rng), drawn(known, 0.0, 0.03, rng)
    apart = np.array([row.scores[s] - whole.scores[s] for s in range(known)])
    twice = [
        Runs(*({s: of[s % known] for s in range(seeds)} for of in (r.scores, r.outcomes)), True) for r in (row, whole)
    ]
    now, later = difference(row, whole), difference(*twice)
    freedom = 4 + known - 1
    variance = (4 * common**2 + (known - 1) * apart.var(ddof=1)) / freedom
    sigma = np.sqrt(variance * freedom / rng.chisquare(freedom, 400_000))
    rest = apart.mean() + sigma * np.sqrt(1 / known + 1 / (seeds - known)) * rng.normal(size=sigma.size)
    final = (known * apart.mean() + (seeds - known) * rest) / seeds
    word = np.where(np.abs(final) <= later.half_width, 0, np.sign(final))
    same = 0 if now.holds_zero else np.sign(now.value)
    if now.holds_zero == later.holds_zero:
        assert chance_of_another(row, whole, seeds, common) == pytest.approx(float(np.mean(word != same)), abs=0.005)
    else:
        assert chance_of_another(row, whole, seeds, common) == 1.0
