"""How sure a ranking is, held against the textbook on scores that are plain means of a table, and when it may stop."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from layersift.data.examples import Example
from layersift.errors import SelectionError
from layersift.models.stacks import BlockStack, find_stack
from layersift.records.selection import LayerScores
from layersift.score import stability as stability_module
from layersift.score.context import ScoringContext
from layersift.score.criterion import Criterion
from layersift.score.probe import Undefined
from layersift.score.stability import measure_convergence, measure_stability, sample_sizes, until_stable
from tiny import tiny


def mean_of(table, direction="high", **settings):
    """A criterion that scores a layer by the mean of its row of ``table`` (M, n) over the samples looked at."""

    def score(given):
        rows = np.arange(len(given.examples)) if given.samples is None else given.samples.numpy()
        means = table[:, rows].mean(axis=1)
        return [float(v) if math.isfinite(v) else Undefined("not here") for v in means]

    facts = {"needs": "forward", "cost": "", "source": "", **settings}
    return Criterion(name="table", summary="", direction=direction, score=score, **facts)


def of_size(m, n, seed=0):
    return ScoringContext(None, BlockStack("b", "encoder", m, ()), (None,) * n, "text", seed=seed)


def normal(seed, means, n, sd=1.0):
    return np.random.default_rng(seed).normal(size=(len(means), n)) * sd + np.array(means)[:, None]


@pytest.mark.parametrize("direction", ["high", "low"])
def test_membership_of_a_threshold_follows_the_direction(direction):
    table = normal(0, [2.0, 0.02, -2.0], 64, sd=0.4)
    found = measure_stability(mean_of(table, direction), of_size(3, 64), 1, threshold=0.0)
    expected = [1.0, None, 0.0] if direction == "high" else [0.0, None, 1.0]
    assert found.membership[0] == expected[0]
    assert found.membership[2] == expected[2]
    middle = stats.norm.cdf(table[1].mean() / (table[1].std(ddof=1) / 8))
    assert found.membership[1] == pytest.approx(middle if direction == "high" else 1 - middle, abs=0.1)


def test_both_directions_of_a_threshold_share_the_halves_between_them():
    table = normal(3, [0.1, -0.1, 0.0], 40)
    above, below = (measure_stability(mean_of(table, d), of_size(3, 40), 1, threshold=0.0) for d in ("high", "low"))
    assert [a + b for a, b in zip(above.membership, below.membership, strict=True)] == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("direction", ["high", "low"])
def test_turning_scores_and_direction_round_changes_nothing_but_the_sign(direction):
    table = normal(1, [0.5, 0.3, 0.2, 0.0], 48)
    other = "low" if direction == "high" else "high"
    one = measure_stability(mean_of(table, direction), of_size(4, 48), 2)
    two = measure_stability(mean_of(-table, other), of_size(4, 48), 2)
    assert one.membership == two.membership
    assert one.certainty == pytest.approx(two.certainty)
    assert one.low == pytest.approx([-v for v in two.high])


@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.96), (0.8, 1.2816), (0.5, 0.6745)])
def test_the_interval_is_as_wide_as_its_confidence_and_lies_round_the_whole(confidence, z):
    table = normal(2, [3.0, 1.0], 400)
    found = measure_stability(mean_of(table), of_size(2, 400), 1, draws=3000, confidence=confidence)
    for layer in range(2):
        half = z * table[layer].std(ddof=1) / 20
        assert found.low[layer] == pytest.approx(table[layer].mean() - half, abs=0.12 * half)
        assert found.high[layer] == pytest.approx(table[layer].mean() + half, abs=0.12 * half)
    assert (found.count, found.draws, found.confidence) == (1, 3000, confidence)


@pytest.mark.parametrize("n", [16, 17, 41])
def test_halves_are_halves_of_different_samples_that_the_seed_draws(n):
    drawn = []

    def score(given):
        drawn.append(None if given.samples is None else given.samples.tolist())
        return [0.0, 1.0]

    criterion = dataclasses.replace(mean_of(np.zeros((2, n))), score=score)
    runs = []
    for seed in (0, 0, 1):
        drawn.clear()
        measure_stability(criterion, of_size(2, n, seed), 1, draws=50)
        assert drawn[0] is None
        assert all(len(set(half)) == len(half) == n // 2 and half == sorted(half) for half in drawn[1:])
        assert len(set(map(tuple, drawn[1:]))) > 40
        runs.append(list(drawn))
    assert runs[0] == runs[1] != runs[2]


def test_fewer_than_sixteen_samples_say_nothing_and_sixteen_do():
    assert measure_stability(mean_of(np.zeros((2, 15))), of_size(2, 15), 1) is None
    assert measure_stability(mean_of(np.zeros((2, 16))), of_size(2, 16), 1) is not None
    assert measure_stability(mean_of(np.zeros((2, 16)), by_sample=False), of_size(2, 16), 1) is None


def test_scores_without_any_spread_are_certain_where_they_differ():
    table = np.repeat([[1.0], [1.0], [2.0], [0.0]], 20, axis=1)
    assert measure_stability(mean_of(table), of_size(4, 20), 1).certainty == (1.0, 1.0, 1.0, 1.0)
    assert measure_stability(mean_of(table), of_size(4, 20), 2).certainty == (0.0, 0.0, 1.0, 1.0)  # a tie at the edge
    assert measure_stability(mean_of(table), of_size(4, 20), 4).certainty == (1.0,) * 4  # all are in


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_layer_is_as_certain_as_students_test_of_its_distance_from_the_edge(count):
    """The edge is the last score inside for those outside, and the first one outside for those inside."""
    table = normal(4, [0.6, 0.35, 0.1, -0.2], 60)
    found = measure_stability(mean_of(table), of_size(4, 60), count, draws=4000)
    order = np.argsort(-table.mean(axis=1))
    inside, outside = order[:count], order[count:]
    if count == 1:  # with a single edge the rival does not change from half to half: the paired test of the textbook
        layer = inside[0]
        rival = outside[0]
        p = stats.ttest_rel(table[layer], table[rival], alternative="greater").pvalue
        far = stats.ttest_rel(table[layer], table[order[-1]], alternative="greater").pvalue
        assert found.certainty[rival] == pytest.approx(1 - p, abs=0.02)
        assert found.certainty[order[-1]] == pytest.approx(1 - far, abs=0.02)
    for layer in range(4):
        sign = 1 if layer in inside else -1
        edge = outside[0] if layer in inside else inside[-1]
        distance = sign * (table[layer].mean() - table[edge].mean())
        assert distance > 0
        bound = stats.t.cdf(distance / (stats.sem(table[layer] - table[edge])), 59)
        assert found.certainty[layer] == pytest.approx(bound, abs=0.12)
    assert found.certainty[order[0]] >= found.certainty[inside[-1]] - 1e-9


def test_a_layer_that_some_halves_do_not_have_is_less_certain_by_their_share():
    table = normal(5, [3.0, 0.0], 32, sd=0.2)
    table[0, 7] = math.nan  # undefined in the whole, and in the halves that hold sample 7
    found = measure_stability(mean_of(table), of_size(2, 32), 1, draws=400)
    assert found.membership[1] == pytest.approx(0.5, abs=0.1)
    assert found.certainty[0] == pytest.approx(0.5, abs=0.1)
    assert (found.low[0], found.low[1]) == pytest.approx((3.0, 0.0), abs=0.3)


def test_an_undefined_layer_has_no_interval_and_is_certainly_out():
    table = normal(6, [3.0, 0.0, 1.0], 32, sd=0.2)
    table[1] = math.nan
    found = measure_stability(mean_of(table), of_size(3, 32), 1)
    assert (found.low[1], found.high[1]) == (None, None)
    assert found.certainty[1] == 1.0
    assert found.membership == (1.0, 0.0, 0.0)
    assert found.decided(0.95)


def test_halves_are_moved_so_that_their_mean_is_the_wholes_score():
    """A score that grows with the number of samples, in one layer more than in the other."""
    noise = normal(7, [0.0, 0.0], 64, sd=0.01)

    def score(given):
        rows = np.arange(64) if given.samples is None else given.samples.numpy()
        return [len(rows) / 10 + noise[0, rows].mean(), 3.5 + len(rows) / 1000 + noise[1, rows].mean()]

    given = of_size(2, 64)
    whole = [6.4 + noise[0].mean(), 3.564 + noise[1].mean()]
    found = measure_stability(dataclasses.replace(mean_of(noise), score=score), given, 1)
    assert found.membership == (1.0, 0.0)  # the halves by themselves would say 3.2 against 3.53
    for layer in range(2):
        assert found.low[layer] < whole[layer] < found.high[layer]
        assert (found.low[layer] + found.high[layer]) / 2 == pytest.approx(whole[layer], abs=0.002)


def test_decided_asks_of_every_layer_both_the_halves_and_students_distribution():
    def found(membership, certainty, draws=200):
        return stability_module.Stability((0.0,), (0.0,), membership, 1, draws, 0.95, certainty, 64)

    assert found((1.0, 0.0), (0.96, 0.96)).decided(0.95)
    assert found((0.95, 0.05), (0.95, 0.95)).decided(0.95)
    assert not found((0.94, 0.05), (0.99, 0.99)).decided(0.95)
    assert not found((0.95, 0.06), (0.99, 0.99)).decided(0.95)
    assert not found((1.0, 0.0), (0.99, 0.94)).decided(0.95)
    # Two hundred halves cannot show more than 199 in 200; Student's distribution has to.
    assert found((0.995, 0.005), (0.9999, 0.9999)).decided(0.9999)
    assert not found((0.99, 0.01), (0.9999, 0.9999)).decided(0.9999)
    assert not found((1.0, 0.0), (0.9999, 0.999)).decided(0.9999)


def test_looks_grow_by_half_until_all_are_read():
    assert sample_sizes(32) == [32]
    assert sample_sizes(33) == [32, 33]
    assert sample_sizes(48) == [32, 48]
    assert sample_sizes(500) == [32, 48, 72, 108, 162, 243, 364, 500]


# Until it is stable


def read_in_order(count):
    model = tiny("bert")
    made = tuple(Example((5 + i % 90, 6), (True, True), label=0) for i in range(count))
    return ScoringContext(model, find_stack(model), made, "classification")


def drift(p, n=32):
    """Scores of four layers, of which the first two are apart such that Student's test of them has this p."""
    noise = np.random.default_rng(0).normal(size=n)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    apart = stats.t.ppf(1 - p, n - 1) / math.sqrt(n) + noise
    return np.stack([apart, np.zeros(n), np.full(n, -100.0), np.full(n, -200.0)])


@pytest.mark.parametrize(
    ("total", "p", "stops"),
    [
        (32, 0.030, 32),  # one look alone is as sure as was asked for
        (48, 0.030, 48),  # of two looks each has to leave half the error, 0.025
        (48, 0.015, 32),
        (128, 0.015, 48),  # of five, a fifth
        (128, 0.004, 32),
    ],
)
def test_the_error_that_is_left_is_shared_among_the_looks(total, p, stops):
    table = np.concatenate([drift(p), np.repeat([[9.0], [0.0], [-100.0], [-200.0]], 96, axis=1)], axis=1)
    criterion = mean_of(table, position="mean", at=lambda position: None)
    grown, found, stop = until_stable(criterion, read_in_order(total), 1, confidence=0.95)
    assert stop.decided
    assert (stop.samples, stop.at_most) == (stops, total)
    assert stop.looks == sample_sizes(total).index(stops) + 1
    assert stop.confidence == found.confidence == 0.95
    assert len(grown.examples) == stops
    assert grown.examples == read_in_order(total).examples[:stops]
    read = grown.representations("mean").states[0]
    alone = read_in_order(total).representations("mean").states[0]
    torch.testing.assert_close(read, alone[:stops], atol=1e-5, rtol=1e-5)


def test_the_last_look_has_read_everything_once_and_says_so():
    table = np.concatenate([drift(0.4), drift(0.4)], axis=1)[:, :40]
    grown, found, stop = until_stable(mean_of(table, position="mean"), read_in_order(40), 1)
    assert (stop.decided, stop.samples, stop.at_most, stop.looks) == (False, 40, 40, 2)
    assert len(grown.examples) == 40
    assert found.count == 1
    assert found.draws == 200


@pytest.mark.parametrize("needs", ["nothing", "weights", "training"])
def test_what_reads_no_samples_cannot_stop(needs):
    with pytest.raises(SelectionError, match="table is not a mean over samples"):
        until_stable(mean_of(np.zeros((4, 40)), needs=needs), read_in_order(40), 1)
    with pytest.raises(SelectionError, match="at least 32 samples, got 31"):
        until_stable(mean_of(np.zeros((4, 40)), position="mean"), read_in_order(31), 1)


# Smaller samples


def test_convergence_is_how_much_of_the_top_smaller_samples_find():
    sure = np.repeat([[3.0], [2.0], [1.0], [0.0]], 40, axis=1)
    sizes = (8, 12, 16, 24, 32, 40)
    assert measure_convergence(mean_of(sure), of_size(4, 40), 2) == tuple((size, 1.0) for size in sizes)
    chance = normal(8, [0.0] * 4, 4000)
    found = measure_convergence(mean_of(chance), of_size(4, 4000), 1, draws=400)
    assert found[0][0] == 8
    assert found[0][1] == pytest.approx(0.25, abs=0.08)  # no better than chance
    assert [size for size, _ in found][-3:] == [384, 512, 4000]
    assert found[-1][1] == 1.0
    assert measure_convergence(mean_of(sure), of_size(4, 16), 2) == ((8, 1.0), (12, 1.0), (16, 1.0))
    assert measure_convergence(mean_of(sure), of_size(4, 15), 2) == ()
    assert measure_convergence(mean_of(sure, by_sample=False), of_size(4, 40), 2) == ()


def test_smaller_samples_hold_no_sample_twice():
    sizes = []

    def score(given):
        if given.samples is not None:
            assert len(set(given.samples.tolist())) == len(given.samples)
            sizes.append(len(given.samples))
        return [0.0, 1.0]

    measure_convergence(dataclasses.replace(mean_of(np.zeros((2, 33))), score=score), of_size(2, 33), 1, draws=5)
    assert sizes == [size for size in (8, 12, 16, 24, 32) for _ in range(5)]


def test_convergence_counts_a_share_of_the_top_and_not_all_or_nothing():
    """One layer is certainly in, and of the other two one is at random: three quarters of the top on average."""
    table = np.concatenate([np.full((1, 4000), 100.0), normal(9, [0.0, 0.0], 4000)])
    found = dict(measure_convergence(mean_of(table), of_size(3, 4000), 2, draws=400))
    assert found[8] == pytest.approx(0.75, abs=0.05)


def test_the_distance_from_the_edge_is_to_the_first_layer_on_its_other_side():
    scores = LayerScores("x", (5.0, 3.0, None, 4.0), {2: ""}, (None,) * 4, 8, 0.0)
    distances = [stability_module._distance(scores, layer, 2, None) for layer in range(4)]
    assert distances == [2.0, -1.0, -math.inf, 1.0]
    low = dataclasses.replace(scores, direction="low")
    assert [stability_module._distance(low, layer, 2, None) for layer in range(4)] == [-1.0, 2.0, -math.inf, 1.0]
    all_that_have_a_score = [stability_module._distance(scores, layer, 3, None) for layer in range(4)]
    assert all_that_have_a_score == [math.inf, math.inf, -math.inf, math.inf]
    assert stability_module._distance(scores, 2, 4, None) == math.inf
    alone = LayerScores("x", (None, None, 1.0), {0: "", 1: ""}, (None,) * 3, 8, 0.0)
    assert [stability_module._distance(alone, layer, 2, None) for layer in range(3)] == [0.0, 0.0, math.inf]


def test_certainty_and_interval_of_halves_written_out():
    def of(*importance):
        return LayerScores("x", importance, {}, (None,) * len(importance), 8, 0.0)

    edge = partial(stability_module._distance, count=1, threshold=None)
    whole, distances = of(1.0, 0.0), (0.5, 1.5, 0.25, 1.25)
    halves = [*(of(d, 0.0) for d in distances), of(None, 0.0)]
    wanted = stats.t.cdf(1.0 / np.std(distances, ddof=1), 8) * 4 / 5
    for layer in (0, 1):
        assert stability_module._certainty(whole, halves, layer, edge, 9) == pytest.approx(wanted, rel=1e-12)
    assert stability_module._interval(halves, 0, 0.5) == pytest.approx((0.4375, 1.3125))
    assert stability_module._interval(halves[3:], 0, 0.5) == (None, None)  # of a single half
    assert stability_module._interval(halves[2:], 0, 0.5) == pytest.approx((0.5, 1.0))
