"""Which rule a name or a function stands for, and edges of scores that no ordinary model comes near."""

import dataclasses
import functools
import itertools
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from layersift.measures import MEASURES
from layersift.models.stacks import BlockStack
from layersift.records.selection import LayerScores
from layersift.represent.read import Representations
from layersift.score import stability as stability_module
from layersift.score.context import Activations, ScoringContext, _alike, top_dimension_share
from layersift.score.criteria.similarity import similarity_criterion
from layersift.score.criterion import Criterion, announce_criteria
from layersift.score.probe import Undefined
from layersift.score.registry import find_criterion
from layersift.score.stability import measure_convergence
from layersift.score.weights import weight_of


def edge(count):
    return partial(stability_module._distance, count=count, threshold=None)


def two_positions(n=40, d=6, layers=3):
    """A context with other representations at the last token than on average."""
    generator = torch.Generator().manual_seed(3)
    read = {
        position: Representations(
            tuple(torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(layers + 1)),
            torch.float32,
            0.0,
            0,
        )
        for position in ("mean", "last")
    }
    context = ScoringContext(None, BlockStack("b", "encoder", layers, ()), (None,) * n, "text")
    return dataclasses.replace(context, activations=Activations.holding(read)), read


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_at_a_position_compares_by_that_measure_at_that_position(name):
    context, read = two_positions()
    measure, found = MEASURES[name], find_criterion(f"{name}@last")
    states = [measure.prepare(state) for state in read["last"].states]
    wanted = [1 - measure.compare(a, b) for a, b in itertools.pairwise(states)]
    assert found.score(context) == pytest.approx(wanted, rel=1e-12)
    assert found.score(context) != pytest.approx(find_criterion(name).score(context), rel=1e-6)
    plain = similarity_criterion(measure)
    assert found == dataclasses.replace(plain, name=f"{name}@last", position="last", score=found.score, at=found.at)
    back = found.at("mean")
    assert (back.name, back.source, back.summary) == (f"{name}@mean", plain.source, plain.summary)


def test_a_rule_of_ones_own_is_called_by_its_name_and_its_highest_scores_are_adapted():
    def depth(context, sign=1):
        return [None if i == 1 else sign * i for i in range(context.num_layers)]

    context, _ = two_positions()
    named, nameless = find_criterion(depth), find_criterion(functools.partial(depth, sign=-1))
    assert (named.name, nameless.name) == ("depth", "own")  # a partial has no name of its own
    assert named.score(context) == [0.0, Undefined("depth gives it none"), 2.0]
    assert nameless.score(context) == [0.0, Undefined("own gives it none"), -2.0]
    for found in (named, nameless):
        assert (found.needs, found.direction) == ("forward", "high")
        assert not found.by_sample
        assert found.at is None
        assert not found.measures


@pytest.mark.parametrize("name", ["first", "last", "middle", "alternate", "first-and-last", "random"])
def test_what_looks_at_nothing_costs_nothing_and_has_no_intervals(name):
    found = find_criterion(name)
    assert (found.needs, found.cost, found.direction, found.by_sample) == ("nothing", "none", "high", False)
    assert found.summary
    assert found.source == "plain"


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 1e6])
def test_the_share_of_the_largest_dimension_does_not_depend_on_the_unit(scale):
    state = np.random.default_rng(0).normal(size=(50, 4)) * np.array([3.0, 1.0, 0.5, 0.2])
    variance = state.var(axis=0, ddof=1)
    wanted = variance.max() / variance.sum()
    assert top_dimension_share(torch.from_numpy(state * scale)) == pytest.approx(wanted, rel=1e-9)


def test_a_layer_without_a_score_is_as_certainly_out_as_halves_leave_it_out_however_near_it_comes():
    def of(*importance):
        return LayerScores("x", importance, {}, (None,) * len(importance), 8, 0.0)

    whole = of(None, 1.0, 0.0)
    halves = [of(1.25, 1.0, 0.0), of(0.75, 1.0, 0.0), of(None, 1.0, 0.0), of(3.0, 1.0, 0.0)]  # in by 1/4, out, out, in
    assert stability_module._certainty(whole, halves, 0, edge(1), 9) == pytest.approx(2 / 4)
    all_of_them = of(1.0, 2.0, 3.0)  # every layer is in: inside without end
    inside = [of(1.0, 2.0, 3.0), of(None, 2.0, 3.0), of(0.5, 0.1, 0.2)]
    assert math.isinf(stability_module._distance(all_of_them, 0, 3, None))
    assert stability_module._certainty(all_of_them, inside, 0, edge(3), 9) == 1.0


def test_two_halves_are_enough_for_a_spread_and_one_has_none():
    def of(*importance):
        return LayerScores("x", importance, {}, (None,) * len(importance), 8, 0.0)

    whole, halves = of(1.0, 0.0), [of(0.5, 0.0), of(2.0, 0.0), of(None, 0.0)]
    spread = abs(2.0 - 0.5) / math.sqrt(2)  # of two, with one degree of freedom
    wanted = stats.t.cdf(1 / spread, 8) * 2 / 3
    assert stability_module._certainty(whole, halves, 0, edge(1), 9) == pytest.approx(wanted, rel=1e-12)
    assert stability_module._certainty(whole, halves[1:], 0, edge(1), 9) == 1.0
    assert stability_module._certainty(of(1.0, 1.0), halves[1:], 0, edge(1), 9) == 0.0  # on the edge itself


def test_a_packed_weight_is_unpacked_and_a_plain_one_is_taken_as_it_is(monkeypatch):
    plain = torch.nn.Linear(3, 2)
    assert weight_of(plain) is not plain.weight  # outside of its graph
    assert torch.equal(weight_of(plain), plain.weight)
    assert not weight_of(plain).requires_grad
    packed = torch.nn.Module()
    packed.weight = torch.nn.Parameter(torch.arange(6, dtype=torch.uint8), requires_grad=False)
    wanted = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
    monkeypatch.setattr("peft.utils.integrations.dequantize_module_weight", {packed: wanted}.__getitem__)
    assert torch.equal(weight_of(packed), wanted)
    assert weight_of(packed).is_floating_point()
    assert not weight_of(packed).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("units", "same"), [(0, True), (4, True), (5, False)])
def test_vectors_are_the_same_up_to_four_units_of_rounding_of_the_largest(dtype, units, same):
    state = torch.ones(9, 2, dtype=torch.float64)
    state[0] = -8.0  # the largest, and no part of the many that are alike
    state[8, 1] += units * 8 * torch.finfo(dtype).eps
    assert _alike(state, dtype).tolist() == [False, *[True] * 7, same]


def test_a_rule_turned_round_says_so_and_twice_is_the_rule_itself():
    context, _ = two_positions()
    plain, turned = find_criterion("cka@last"), find_criterion("bottom:cka@last")
    assert (turned.name, turned.summary) == ("bottom:cka@last", "the layers that cka@last puts last")
    assert (plain.direction, turned.direction) == ("high", "low")
    assert turned.score(context) == plain.score(context)
    assert turned.at("mean").name == "bottom:cka@mean"
    assert turned.at("mean").direction == "low"
    assert find_criterion("bottom:bottom:cka").direction == "high"


@pytest.mark.parametrize("n", [16, 193, 600])
def test_convergence_is_told_at_every_size_below_the_samples_and_at_all_of_them(n):
    table = np.random.default_rng(0).normal(size=(2, n))

    def score(given):
        rows = np.arange(n) if given.samples is None else given.samples.numpy()
        return table[:, rows].mean(axis=1).tolist()

    criterion = Criterion("table", "", "forward", "high", score, "", "")
    context = ScoringContext(None, BlockStack("b", "encoder", 2, ()), (None,) * n, "text")
    found = measure_convergence(criterion, context, 1, draws=2)
    sizes = [size for k in range(3, 10) for size in (2**k, 3 * 2 ** (k - 1)) if size < n and size <= 512]
    assert [size for size, _ in found] == [*sizes, n]
    assert found[-1] == (n, 1.0)
    assert all(share in (0, 0.5, 1) for _, share in found)


@pytest.mark.parametrize(("needs", "at", "read"), [("forward", None, []), ("forward", "last", ["last"])])
def test_only_what_looks_at_states_has_them_read(needs, at, read):
    asked = []
    criterion = Criterion("x", "", needs, "high", list, "", "", position=at, at=None if at is None else find_criterion)
    context = SimpleNamespace(position="mean", activations=SimpleNamespace(announce=lambda p, m: asked.extend(p)))
    announce_criteria([criterion], context)
    assert asked == read
