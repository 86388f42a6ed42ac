"""Intervals against the textbook, and words that say no more than they."""

import numpy as np
import pytest
from scipy import stats

from layersift.compare.statistics import (
    LOSS,
    POINTS,
    Interval,
    Runs,
    difference,
    mean_score,
    over_samples,
    over_seeds,
    unit_of,
    verdict,
)


def runs(scores, outcomes=None, averages=True):
    seeds = range(len(scores))
    given = outcomes if outcomes is not None else [[s] * 4 for s in scores]
    return Runs(
        dict(zip(seeds, scores, strict=True)), {i: np.array(o) for i, o in zip(seeds, given, strict=True)}, averages
    )


def test_the_interval_over_seeds_is_students():
    values = [0.81, 0.84, 0.80]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    found = over_seeds(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.over == "3 seeds"
    assert over_seeds([0.8]) == Interval(0.8, None, None, "1 seed")


def test_the_interval_over_test_samples_is_normal():
    outcomes = np.random.default_rng(0).integers(0, 2, 200).astype(float)
    low, high = stats.norm.interval(0.95, loc=outcomes.mean(), scale=stats.sem(outcomes))
    found = over_samples(float(outcomes.mean()), outcomes.tolist())
    assert (found.low, found.high) == pytest.approx((low, high))


def test_differences_are_paired_by_seed_and_narrower_than_the_scores():
    a, b = runs([0.80, 0.85, 0.90]), runs([0.78, 0.83, 0.88])
    found = difference(a, b)
    assert found.value == pytest.approx(0.02)
    assert found.half_width == pytest.approx(0, abs=1e-9)
    assert mean_score(a).half_width > 0.1


def test_one_seed_is_compared_test_sample_by_test_sample():
    ours, theirs = [1.0, 1, 1, 0, 1, 0, 1, 1], [1.0, 0, 1, 0, 1, 0, 0, 1]
    found = difference(runs([0.75], [ours]), runs([0.5], [theirs]))
    apart = np.subtract(ours, theirs)
    assert found.half_width == pytest.approx(stats.norm.ppf(0.975) * stats.sem(apart))
    assert found.over == "8 test samples"
    correlation = difference(runs([0.75], [ours], averages=False), runs([0.5], [theirs], averages=False))
    assert correlation.low is None


def test_only_seeds_that_both_have_are_compared():
    some = Runs({1: 0.9}, {1: np.ones(4)}, False)
    assert difference(runs([0.5, 0.6], averages=False), some).value == pytest.approx(-0.3)
    assert difference(runs([0.5], averages=False), some) is None


@pytest.mark.parametrize(
    ("interval", "unit", "words"),
    [
        (Interval(0.004, -0.002, 0.010, "5 seeds"), POINTS, "no difference from all seen (±0.6 points, 5 seeds)"),
        (Interval(0.012, 0.004, 0.020, "5 seeds"), POINTS, "better than all by 1.2 points (0.4 to 2.0, 5 seeds)"),
        (Interval(-0.012, -0.02, -0.004, "5 seeds"), POINTS, "worse than all by 1.2 points (0.4 to 2.0, 5 seeds)"),
        (Interval(0.02, 0.01, 0.03, "9 test samples"), LOSS, "worse than all by 0.0200 nats a token (0.0100 to 0.0300"),
        (Interval(0.02, None, None, "1 seed"), POINTS, "one seed says nothing of a difference from all"),
        (None, POINTS, "not compared with all"),
    ],
)
def test_verdicts_are_never_stronger_than_their_interval(interval, unit, words):
    assert verdict(interval, "all", unit).startswith(words)


def test_units():
    assert unit_of("accuracy") is POINTS
    assert unit_of("loss") is LOSS
    assert POINTS.tell(0.123) == "12.3"
    assert LOSS.tell(-0.5, sign=True) == "-0.5000"
