"""Intervals against the textbook, and words that say no more than they."""

import numpy as np
import pytest
from scipy import stats

from layersift.statistics.intervals import (
    LOSS,
    POINTS,
    Interval,
    Runs,
    difference,
    error_of_mean,
    mean_score,
    unit_of,
    verdict,
)


def runs(scores, outcomes=None, averages=True, **more):
    seeds = range(len(scores))
    given = outcomes if outcomes is not None else [[s + 0.01, s - 0.01] for s in scores]
    outcomes = {i: np.array(o, dtype=float) for i, o in zip(seeds, given, strict=True)}
    return Runs(dict(zip(seeds, scores, strict=True)), outcomes, averages, **{"asked": len(scores), **more})


def right(count, of):
    return [1.0] * count + [0.0] * (of - count)


def test_the_interval_over_seeds_is_students():
    values = [0.81, 0.84, 0.80]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    found = mean_score(runs(values, averages=False))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.over == "3 seeds"
    assert mean_score(runs([0.8], averages=False)) == Interval(0.8, None, None, "1 seed")


def test_one_seeds_loss_has_students_interval_over_the_test_samples():
    outcomes = np.random.default_rng(0).normal(2, 0.5, 30)
    low, high = stats.t.interval(0.95, 29, loc=outcomes.mean(), scale=stats.sem(outcomes))
    found = mean_score(runs([float(outcomes.mean())], [outcomes]))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.over == "30 test samples"


def test_one_seeds_share_of_right_answers_has_wilsons_interval():
    found = mean_score(runs([1.0], [right(20, 20)]))
    z2 = stats.norm.ppf(0.975) ** 2
    assert (found.low, found.high) == pytest.approx((20 / (20 + z2), 1.0))  # what Wilson's formula comes to at k = n


def test_the_error_of_a_loss_a_token_is_that_of_a_ratio():
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 200, 400)
    losses = rng.normal(1, 0.3, 400) + 1 / tokens
    drawn = [rng.integers(0, 400, 400) for _ in range(4000)]
    bootstrapped = np.std([np.average(losses[i], weights=tokens[i]) for i in drawn])
    assert error_of_mean(losses, tokens) == pytest.approx(bootstrapped, rel=0.05)
    assert error_of_mean(losses) == pytest.approx(stats.sem(losses))
    assert error_of_mean(losses, [7] * 400) == pytest.approx(stats.sem(losses))


def test_a_difference_is_spread_round_the_difference_it_tells():
    """One long row that loses outweighs many short ones that gain, and its interval has to know that it is one row."""
    tokens = [1] * 99 + [10_000]
    ours, theirs = np.array([1.9] * 99 + [2.1]), np.full(100, 2.0)
    scores = [float(np.average(x, weights=tokens)) for x in (ours, theirs)]
    found = difference(runs(scores[:1], [ours], weights=tokens), runs(scores[1:], [theirs], weights=tokens))
    assert found.value > 0
    apart = ours - theirs
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 99) * error_of_mean(apart, tokens))


def test_differences_are_paired_by_seed_and_narrower_than_the_scores():
    a, b = runs([0.80, 0.85, 0.90]), runs([0.78, 0.83, 0.88])
    found = difference(a, b)
    assert found.value == pytest.approx(0.02)
    assert found.half_width == pytest.approx(0, abs=1e-9)
    assert mean_score(a).half_width > 0.1


def test_one_seed_is_compared_test_sample_by_test_sample():
    ours, theirs = np.array([1.2, 1, 1.5, 0.3, 1, 0.1]), np.array([1.0, 0, 1, 0, 1, 0])
    found = difference(runs([ours.mean()], [ours]), runs([theirs.mean()], [theirs]))
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 5) * stats.sem(ours - theirs))
    assert found.over == "6 test samples"
    correlation = difference(runs([0.75], [ours], averages=False), runs([0.5], [theirs], averages=False))
    assert correlation.low is None


@pytest.mark.parametrize(
    ("gained", "lost", "of"), [(3, 0, 8), (4, 0, 200), (0, 0, 8), (0, 4, 200), (5, 1, 50)]
)  # of each, the exact test's p is above 0.05
def test_few_right_answers_that_differ_decide_nothing(gained, lost, of):
    common = of - gained - lost
    ours = right(gained, gained) + right(0, lost) + right(common // 2, common)
    theirs = right(0, gained) + right(lost, lost) + right(common // 2, common)
    found = difference(runs([np.mean(ours)], [ours]), runs([np.mean(theirs)], [theirs]))
    assert found.value == pytest.approx((gained - lost) / of)
    assert found.holds_zero
    assert found.half_width > 0


def test_many_right_answers_that_differ_decide():
    found = difference(runs([0.8], [right(80, 100)]), runs([0.5], [right(50, 100)]))
    assert not found.holds_zero
    assert found.low < 0.3 < found.high


def test_seeds_that_happen_to_agree_are_not_certainty():
    a, b = runs([0.75, 0.75], [right(18, 24)] * 2), runs([17 / 24] * 2, [right(17, 24)] * 2)
    assert difference(a, b).holds_zero
    assert mean_score(a).half_width > 0.01


def test_a_few_draws_are_not_all_random_layers():
    draws = (0.60, 0.65, 0.70, 0.75, 0.80)
    random = runs([0.70] * 3, averages=False, draws=draws)
    found = difference(runs([0.72] * 3, averages=False), random)
    assert found.holds_zero
    assert found.over == "3 seeds and 5 draws"
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 4) * stats.sem(draws))  # seeds alike: the draws' alone
    assert mean_score(random).half_width == pytest.approx(found.half_width)
    alike = runs([0.70, 0.71, 0.69], averages=False, draws=(0.70,) * 5)
    assert difference(runs([0.80, 0.82, 0.79], averages=False), alike).holds_zero is False


def test_only_seeds_that_both_have_are_compared():
    some = Runs({1: 0.9}, {1: np.ones(4)}, False, asked=2)
    assert difference(runs([0.5, 0.6], averages=False), some).value == pytest.approx(-0.3)
    assert difference(runs([0.5], averages=False), some) is None


def test_the_one_seed_that_is_left_of_several_has_no_interval():
    left = Runs({1: 0.9}, {1: np.array([1.0, 0.8])}, True, asked=3)
    assert mean_score(left) == Interval(0.9, None, None, "1 seed")
    assert difference(left, runs([0.5, 0.6, 0.7])).low is None


@pytest.mark.parametrize(
    ("interval", "unit", "words"),
    [
        (Interval(0.004, -0.002, 0.010, "5 seeds"), POINTS, "no difference from all seen (±0.6 points, 5 seeds)"),
        (Interval(0.012, 0.004, 0.020, "5 seeds"), POINTS, "better than all by 1.2 points (0.4 to 2.0, 5 seeds)"),
        (Interval(-0.012, -0.02, -0.004, "5 seeds"), POINTS, "worse than all by 1.2 points (0.4 to 2.0, 5 seeds)"),
        (Interval(0.02, 0.01, 0.03, "9 test samples"), LOSS, "worse than all by 0.0200 nats a token (0.0100 to 0.0300"),
        (Interval(0.02, None, None, "1 seed"), POINTS, "one seed says nothing of a difference from all"),
        (None, POINTS, "not compared with all, which failed"),
    ],
)
def test_verdicts_are_never_stronger_than_their_interval(interval, unit, words):
    assert verdict(interval, "all", unit).startswith(words)


def test_units():
    assert unit_of("accuracy") is POINTS
    assert unit_of("loss") is LOSS
    assert unit_of("perplexity en").name == "perplexity"
    assert POINTS.tell(0.123) == "12.3"
    assert LOSS.tell(-0.5, sign=True) == "-0.5000"
