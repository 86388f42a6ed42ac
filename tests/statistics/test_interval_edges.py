"""Intervals against their formulas written out anew, term by term, where a wrong constant would hardly show."""

import math

import numpy as np
import pytest
from scipy import stats

from layersift.statistics.intervals import (
    LOSS,
    PERPLEXITY,
    POINTS,
    Interval,
    Runs,
    difference,
    error_of_mean,
    mean_score,
    pareto,
    unit_of,
    verdict,
)


def runs(scores, outcomes=None, averages=True, **more):
    given = outcomes if outcomes is not None else [[s + 0.01, s - 0.01] for s in scores]
    made = {seed: np.array(o, dtype=float) for seed, o in enumerate(given)}
    return Runs(dict(enumerate(scores)), made, averages, **{"asked": len(scores), **more})


def right(count, of):
    return [1.0] * count + [0.0] * (of - count)


def cochran(parts):
    """Half the 95% interval of a sum of independent means, each of given variance and degrees of freedom."""
    variances = np.array([v for v, _ in parts])
    quantiles = np.array([stats.t.ppf(0.975, df) for _, df in parts])
    return np.average(quantiles, weights=variances) * math.sqrt(variances.sum())


# Scores that count right answers


def crossed(table, extra=0.0):
    """Half the 95% interval of the mean of seeds by samples, from the mean squares of a two-way table."""
    seeds, samples = table.shape
    mean = table.mean()
    of_seeds = samples * ((table.mean(1) - mean) ** 2).sum() / (seeds - 1)
    of_samples = seeds * ((table.mean(0) - mean) ** 2).sum() / (samples - 1) + extra
    left = table - table.mean(0) - table.mean(1, keepdims=True) + mean
    of_both = (left**2).sum() / (seeds - 1) / (samples - 1)
    n = seeds * samples
    variance = max(of_seeds, of_samples, of_seeds + of_samples - of_both) / n
    return cochran([(of_seeds / n, seeds - 1), (variance - of_seeds / n, samples - 1)])


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("samples", [2, 9, 60])
def test_seeds_crossed_with_samples_have_the_two_way_tables_interval(seeds, samples):
    rng = np.random.default_rng(seeds * samples)
    ours = rng.normal(0, 1, samples) + rng.normal(0, 0.3, (seeds, 1)) + rng.normal(0, 0.5, (seeds, samples))
    theirs = rng.normal(0, 1, (seeds, samples))
    a, b = (runs(list(o.mean(1)), o) for o in (ours, theirs))
    assert mean_score(a).half_width == pytest.approx(crossed(ours), rel=1e-9)
    found = difference(a, b)
    assert found.half_width == pytest.approx(crossed(ours - theirs), rel=1e-9)
    assert found.value == pytest.approx(ours.mean() - theirs.mean())
    assert found.over == f"{seeds} seeds and {samples} test samples"
    assert found.half_width < found.visible < 3 * found.half_width


def test_right_answers_have_half_an_answer_more_to_either_side():
    ours = np.array([right(7, 10), right(6, 10), right(8, 10)])
    found = mean_score(runs(list(ours.mean(1)), ours))
    assert found.half_width == pytest.approx(crossed(ours, 1 / 10), rel=1e-9)  # a mean square of one answer of ten rows


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_and_samples_that_all_agree_are_no_certainty(seeds):
    """That of one answer in as many as there are, and less the more seeds there are."""
    same = runs([0.75] * seeds, [right(18, 24)] * seeds)
    found = difference(same, runs([0.75] * seeds, [right(18, 24)] * seeds))
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 23) / math.sqrt(seeds) / 24, rel=1e-9)
    assert found.holds_zero


def test_weights_of_samples_count_in_their_spread():
    """A loss a token: equal weights change nothing, and a sample of weight none has no part in it."""
    rng = np.random.default_rng(3)
    losses = rng.normal(1, 0.3, (4, 30))
    plain = mean_score(runs(list(losses.mean(1)), losses))
    assert mean_score(runs(list(losses.mean(1)), losses, weights=[7.0] * 30)).half_width == pytest.approx(
        plain.half_width
    )
    long = np.concatenate([losses, np.full((4, 1), 9.0)], axis=1)
    weights = [1.0] * 30 + [1e-9]
    found = mean_score(runs([np.average(row, weights=weights) for row in long], long, weights=weights))
    assert found.half_width == pytest.approx(plain.half_width, rel=0.05)


def test_scores_that_are_no_mean_over_samples_speak_of_seeds_alone():
    values = [0.5, 0.75, 0.7]
    given = runs(values, [right(1, 2)] * 3, averages=False)
    assert mean_score(given).half_width == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(values), rel=1e-12)
    assert mean_score(given).over == "3 seeds"
    assert runs(values, [right(1, 2), [0.5, 1.0], right(1, 2)]).counts is False  # all seeds have to count


@pytest.mark.parametrize(("hits", "of"), [(0, 12), (3, 12), (12, 12), (77, 100)])
def test_one_share_of_right_answers_has_wilsons_interval(hits, of):
    found = mean_score(runs([hits / of], [right(hits, of)]))
    z, p = stats.norm.ppf(0.975), hits / of
    centre = (p + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * math.sqrt(p * (1 - p) / of + z**2 / (4 * of**2))
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert found.value == p


@pytest.mark.parametrize(("gained", "lost", "of"), [(0, 0, 6), (5, 0, 12), (1, 4, 9), (30, 10, 100), (2, 2, 40)])
def test_paired_answers_have_agrestis_and_mins_interval(gained, lost, of):
    """Half an answer more in each cell of the table of both, then Wald's interval of b / N - c / N."""
    ours = right(gained, gained) + right(0, lost) + right(of - gained - lost, of - gained - lost)
    theirs = right(0, gained) + right(lost, lost) + right(of - gained - lost, of - gained - lost)
    found = difference(runs([np.mean(ours)], [ours]), runs([np.mean(theirs)], [theirs]))
    b, c, total = gained + 0.5, lost + 0.5, of + 4 * 0.5
    centre = (b - c) / total
    half = stats.norm.ppf(0.975) * math.sqrt(b + c - (b - c) ** 2 / total) / total
    assert found.value == pytest.approx((gained - lost) / of)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), rel=1e-12, abs=1e-15)


def test_paired_answers_lie_symmetrically_when_the_sides_are_swapped():
    a, b = runs([0.7], [right(7, 10)]), runs([0.4], [right(4, 10)])
    there, back = difference(a, b), difference(b, a)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


# Several sources of spread


def test_seeds_and_draws_each_have_their_own_degrees_of_freedom():
    values, draws = [0.71, 0.74, 0.70, 0.75], (0.60, 0.64, 0.71)
    found = mean_score(runs(values, averages=False, draws=draws))
    parts = [(np.var(values, ddof=1) / 4, 3), (np.var(draws, ddof=1) / 3, 2)]
    assert found.half_width == pytest.approx(cochran(parts), rel=1e-12)
    assert found.over == "4 seeds and 3 draws"


def test_two_random_rows_are_compared_by_cochrans_and_coxs_test():
    """Seeds that agree exactly leave the draws' means alone: their t test, wider than Welch's."""
    ours, theirs = (0.60, 0.64, 0.71, 0.69, 0.75), (0.58, 0.30, 0.41)
    a, b = (runs([np.mean(d)] * 2, averages=False, draws=d) for d in (ours, theirs))
    found = difference(a, b)
    assert found.half_width == pytest.approx(
        cochran([(stats.sem(ours) ** 2, 4), (stats.sem(theirs) ** 2, 2)]), rel=1e-9
    )
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert found.low < low < high < found.high
    assert found.over == "2 seeds and 5 against 3 draws"


# Seeds that vary as much as rows do


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("ratio", [0.3, 3.0, 10.0])  # of the mean's variances: that of the seeds to that of the rows
def test_intervals_over_few_seeds_hold_the_truth(seeds, ratio):
    """By simulation: 95 of 100 intervals of a score and of a difference, for two seeds that vary ten times as much."""
    rng, rows, trials = np.random.default_rng(17), 60, 800
    held = called = 0
    for _ in range(trials):
        shared = rng.normal(size=rows)
        tables = [
            5
            + shared
            + rng.normal(size=rows)
            + math.sqrt(2 * ratio * seeds / rows) * rng.normal(size=(seeds, 1))
            + 0.3 * rng.normal(size=(seeds, rows))
            for _ in range(2)
        ]
        ours, theirs = (runs(list(table.mean(1)), table) for table in tables)
        score = mean_score(ours)
        held += score.low <= 5 <= score.high
        called += not difference(ours, theirs).holds_zero
    assert held / trials > 0.93
    assert called / trials < 0.07


def test_three_parts_add_up():
    values, other = [0.9, 0.8, 0.85], [0.5, 0.6, 0.4]
    ours, theirs = (0.8, 0.9), (0.4, 0.5, 0.7)
    found = difference(runs(values, averages=False, draws=ours), runs(other, averages=False, draws=theirs))
    apart = np.subtract(values, other)
    parts = [(np.var(apart, ddof=1) / 3, 2), (np.var(ours, ddof=1) / 2, 1), (np.var(theirs, ddof=1) / 3, 2)]
    assert found.half_width == pytest.approx(cochran(parts), rel=1e-12)


def test_one_seed_of_several_draws_is_spread_over_samples_and_draws():
    outcomes, draws = [0.1, 0.4, 0.9, 0.3, 0.8], (0.45, 0.5, 0.55)
    own = (np.var(outcomes, ddof=1) / 5, 4)
    of_draws = (np.var(draws, ddof=1) / 3, 2)
    found = mean_score(runs([0.5], [outcomes], draws=draws))
    assert found.half_width == pytest.approx(cochran([own, of_draws]), rel=1e-12)
    assert found.over == "5 test samples and 3 draws"
    counted = mean_score(runs([0.5], [right(3, 6)], draws=draws))  # not Wilson's: the draws belong to it
    assert counted.half_width == pytest.approx(cochran([(np.var(right(3, 6), ddof=1) / 6, 5), of_draws]), rel=1e-12)


def test_draws_keep_paired_answers_from_passing_for_all_there_is():
    ours, theirs, draws = right(6, 8), right(2, 8), (0.5, 0.9)
    found = difference(runs([0.75], [ours], draws=draws), runs([0.25], [theirs]))
    apart = np.subtract(ours, theirs)
    parts = [(np.var(apart, ddof=1) / 8, 7), (np.var(draws, ddof=1) / 2, 1)]
    assert found.half_width == pytest.approx(cochran(parts), rel=1e-12)


@pytest.mark.parametrize("swapped", [False, True])
def test_answers_held_against_what_is_no_count_have_students_interval(swapped):
    sides = [runs([0.75], [right(3, 4)]), runs([0.5], [[0.5, 0.25, 1.0, 0.25]])]
    found = difference(*(reversed(sides) if swapped else sides))
    apart = np.subtract(right(3, 4), [0.5, 0.25, 1.0, 0.25])
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 3) * stats.sem(apart), rel=1e-12)


def test_a_single_draw_has_no_spread():
    assert mean_score(runs([0.5, 0.7], draws=(0.6,))) == mean_score(runs([0.5, 0.7]))


def test_one_test_sample_says_nothing():
    assert mean_score(runs([0.3], [[0.3]])) == Interval(0.3, None, None, "1 test sample")
    two = mean_score(runs([0.3], [[0.2, 0.4]]))
    assert two.half_width == pytest.approx(stats.t.ppf(0.975, 1) * 0.1)


def test_the_samples_decide_only_where_one_seed_was_asked_for_and_the_score_is_their_mean():
    assert runs([0.5], [[0.4, 0.6]]).by_samples
    assert not runs([0.5], [[0.4, 0.6]], asked=3).by_samples
    assert not runs([0.5], [[0.4, 0.6]], averages=False).by_samples
    assert not runs([0.5, 0.5]).by_samples
    one, several = runs([0.5], [[0.4, 0.6]]), runs([0.5], [[0.4, 0.6]], asked=3)
    assert difference(one, several).over == difference(several, one).over == "1 seed"


def test_seeds_are_paired_by_number_and_not_by_place():
    a = Runs({3: 0.9, 1: 0.5}, {3: np.ones(2) / 3, 1: np.ones(2) / 3}, False, asked=2)
    b = Runs({1: 0.4, 3: 0.8}, {1: np.ones(2) / 3, 3: np.ones(2) / 3}, False, asked=2)
    found = difference(a, b)
    assert found.value == pytest.approx(0.1)
    assert found.half_width == pytest.approx(0, abs=1e-12)


# Of an interval, and of a mean


def test_the_half_width_is_the_longer_side():
    assert Interval(0.5, 0.4, 0.8, "").half_width == pytest.approx(0.3)
    assert Interval(0.5, 0.1, 0.6, "").half_width == pytest.approx(0.4)
    assert Interval(0.5, None, 0.6, "").half_width is None
    assert Interval(0.5, 0.4, None, "").half_width is None


@pytest.mark.parametrize(
    ("low", "high", "holds"),
    [
        (0.0, 0.1, True),
        (-0.1, 0.0, True),
        (-0.1, 0.1, True),
        (1e-9, 0.1, False),
        (-0.1, -1e-9, False),
        (None, 0.1, True),
        (0.1, None, True),
    ],
)
def test_an_interval_holds_zero_at_its_edges_too(low, high, holds):
    assert Interval(0.0, low, high, "").holds_zero is holds


def test_the_error_of_a_weighted_mean_is_cochrans():
    """Of the ratio of sums of y = w x and w: sqrt(sum (y - R w)^2 / (n (n - 1))) / mean w."""
    values, weights = np.array([0.2, 0.9, 0.4, 0.7, 0.1]), np.array([3.0, 1.0, 8.0, 2.0, 6.0])
    n, ratio = 5, float(values @ weights / weights.sum())
    wanted = math.sqrt(float(((weights * (values - ratio)) ** 2).sum()) / (n * (n - 1))) / weights.mean()
    assert error_of_mean(values, weights) == pytest.approx(wanted, rel=1e-12)
    assert error_of_mean(values, 1000 * weights) == pytest.approx(wanted, rel=1e-12)
    assert error_of_mean([0.0, 1.0]) == pytest.approx(0.5)


def test_weighted_outcomes_are_compared_with_their_weights():
    ours, theirs, weights = np.array([1.0, 2.0, 4.0]), np.array([1.5, 1.0, 1.0]), [1, 5, 2]
    a, b = (runs([float(np.average(x, weights=weights))], [x], weights=weights) for x in (ours, theirs))
    half = stats.t.ppf(0.975, 2) * error_of_mean(ours - theirs, weights)
    assert difference(a, b).half_width == pytest.approx(half, rel=1e-12)
    assert half != pytest.approx(stats.t.ppf(0.975, 2) * error_of_mean(ours - theirs), rel=0.01)
    assert mean_score(a).half_width == pytest.approx(stats.t.ppf(0.975, 2) * error_of_mean(ours, weights), rel=1e-12)


# Words


def test_what_is_told_is_the_longer_side_and_the_nearer_edge_first():
    found = Interval(0.01, -0.02, 0.02, "9 test samples")
    assert verdict(found, "all", POINTS) == "no difference from all seen (±3.0 points, 9 test samples)"
    worse = Interval(-0.05, -0.09, -0.02, "9 test samples")
    assert verdict(worse, "all", POINTS) == "worse than all by 5.0 points (2.0 to 9.0, 9 test samples)"
    lower = Interval(-0.5, -0.75, -0.25, "3 seeds")
    assert verdict(lower, "all", LOSS) == "better than all by 0.5000 nats a token (0.2500 to 0.7500, 3 seeds)"


def test_units_by_the_first_word_of_a_metric():
    assert [unit_of(name) for name in ("loss", "loss en", "perplexity", "accuracy", "f1 macro")] == [
        LOSS,
        LOSS,
        PERPLEXITY,
        POINTS,
        POINTS,
    ]
    assert (POINTS.tell(0.0567), POINTS.tell(0.0567, sign=True)) == ("5.7", "+5.7")
    assert PERPLEXITY.tell(3.14159) == "3.142"


def test_what_nothing_beats():
    points = [(1.0, 0.5), (1.0, 0.7), (2.0, 0.7), (3.0, 0.9), (3.0, 0.9), (0.5, 0.1), (4.0, 0.2)]
    assert pareto(points) == [False, True, False, True, True, True, False]
