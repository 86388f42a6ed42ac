"""Where a comparison of representations has no meaning, to the last unit of rounding, and what is said of it."""

import math

import numpy as np
import pytest
import torch

from layersift.errors import SelectionError
from layersift.measures import MEASURES, TOKEN_MEASURES
from layersift.models.stacks import BlockStack
from layersift.represent.read import Representations
from layersift.score.context import ScoringContext, importances, prepare, top_dimension_share, why_undefined
from layersift.score.criteria.similarity import similarity_criterion, token_criterion
from layersift.score.criterion import score_layers
from layersift.score.probe import Undefined, is_number

CKA, BIASED = MEASURES["cka"], MEASURES["cka-biased"]


def states_of(seed, n=16, d=6, count=3):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(n, d))
    made = [first]
    for _ in range(count - 1):
        made.append(made[-1] + 0.6 * rng.normal(size=(n, d)))
    return [torch.from_numpy(state).float() for state in made]


def read(states, dtype=torch.float32, between=None):
    return Representations(tuple(states), dtype, 0.0, 0, between or {})


def context(states, dtype=torch.float32, between=None):
    given = ScoringContext(None, BlockStack("b", "encoder", len(states) - 1, ()), (None,) * len(states[0]), "text")
    given.activations._representations["mean"] = read(states, dtype, between)
    return given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("units", "varies"), [(0, False), (3, False), (4, False), (5, True), (6, True)])
def test_what_spreads_no_further_than_four_units_of_rounding_is_constant(dtype, units, varies):
    state = torch.full((8, 3), 0.5, dtype=torch.float64)
    state[:, 1] = -1.0
    state[3, 1] = -1.0 + units * torch.finfo(dtype).eps
    assert why_undefined(state, dtype) == (None if varies else "constant over the sample")


def test_one_dimension_that_varies_is_enough_and_rounding_follows_each_ones_own_size():
    state = torch.full((8, 3), 1e6)
    state[:, 2] = 1e-6 * torch.arange(8)  # far below the rounding of the others
    assert why_undefined(state, torch.float32) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_hold_what_is_no_number_are_counted_once(bad):
    state = states_of(0)[0]
    state[2, 0] = state[2, 3] = state[9, 1] = bad
    assert why_undefined(state, torch.float32) == "NaN or infinity in 2 of 16 samples"


def test_both_sides_are_named_where_both_are_at_fault():
    states = states_of(1)
    states[1] = torch.ones_like(states[1])
    states[2][0, 0] = math.nan
    found = score_layers(similarity_criterion(CKA), context(states))
    assert found.undefined == {
        0: "its output is constant over the sample",
        1: "its input is constant over the sample; its output has NaN or infinity in 1 of 16 samples",
    }
    assert found.importance == (None, None)
    assert found.ranking == ()


def test_the_published_rule_gives_what_is_constant_its_number_but_not_what_is_no_number():
    states = states_of(2, count=5)
    states[0] = torch.ones_like(states[0])
    states[4][0, 0] = math.nan
    prepared = prepare(read(states), BIASED)
    found = importances(prepared, BIASED, constant_importance=1.0)
    assert found[0] == 1.0
    assert 0 < found[1] < 1
    assert found[3] == Undefined("its output has NaN or infinity in 1 of 16 samples")
    assert isinstance(importances(prepared, BIASED)[0], Undefined)
    assert importances(prepared, BIASED, constant_importance=0.0)[0] == 0.0
    states[3] = torch.ones_like(states[3])  # constant before, no number behind
    both = importances(prepare(read(states), BIASED), BIASED, constant_importance=1.0)
    assert isinstance(both[3], Undefined)
    assert both[2] == 1.0


def test_the_importance_is_what_a_layer_changes_and_layers_are_compared_with_their_neighbours():
    states = states_of(3, count=4)
    states[2] = 3 * states[1] @ torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    found = score_layers(similarity_criterion(BIASED), context(states)).importance
    for layer in range(3):
        x, y = (s.double().numpy() - s.double().numpy().mean(axis=0) for s in states[layer : layer + 2])
        wanted = 1 - np.square(x.T @ y).sum() / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
        assert found[layer] == pytest.approx(wanted, abs=1e-9)
    assert found[1] == pytest.approx(0, abs=1e-6)  # a rotation


@pytest.mark.parametrize("measure", MEASURES.values(), ids=lambda m: m.name)
@pytest.mark.filterwarnings("ignore:var.*degrees of freedom:UserWarning")
def test_as_many_samples_as_a_measure_needs_are_enough(measure):
    n = measure.min_samples
    enough = score_layers(similarity_criterion(measure), context(states_of(4, n=n)))
    assert None not in enough.importance
    with pytest.raises(SelectionError, match=f"{measure.name} needs at least {n} samples, got {n - 1}"):
        score_layers(similarity_criterion(measure), context(states_of(4, n=n - 1)))


@pytest.mark.parametrize("measure", MEASURES.values(), ids=lambda m: m.name)
def test_some_of_the_samples_are_compared_as_if_there_were_no_others(measure):
    states, rows = states_of(5, n=24, d=40), torch.tensor([1, 2, 5, 8, 9, 13, 17, 18, 20, 23])
    part = score_layers(similarity_criterion(measure), context(states).of(rows))
    alone = score_layers(similarity_criterion(measure), context([s[rows] for s in states]))
    assert part.importance == pytest.approx(alone.importance, abs=1e-6)
    assert part.num_samples == alone.num_samples == 10
    assert part.top_dimension_share == (None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_in_which_all_are_the_same_vector_up_to_rounding_is_constant(dtype):
    states = states_of(6, n=32)
    eps = torch.finfo(dtype).eps
    states[1][4:] = 1.0 + eps * torch.tensor([0.0, 1.0, -1.0, 2.0]).repeat(7)[:, None]
    given = context(states, dtype)
    assert None not in score_layers(similarity_criterion(CKA), given).importance
    assert score_layers(similarity_criterion(CKA), given.of(torch.arange(4, 32))).undefined == {
        0: "its output is constant over the sample",
        1: "its input is constant over the sample",
    }
    assert None not in score_layers(similarity_criterion(CKA), given.of(torch.arange(3, 32))).importance
    states[1][:, 1:] = states_of(9, n=32)[0][:, 1:]  # one dimension alone may stand still
    part = context(states, dtype).of(torch.arange(4, 32))
    assert None not in score_layers(similarity_criterion(CKA), part).importance


def test_a_part_that_is_too_small_is_refused_whatever_the_whole():
    with pytest.raises(SelectionError, match="cka needs at least 4 samples, got 3"):
        score_layers(similarity_criterion(CKA), context(states_of(10)).of(torch.arange(3)))


def test_the_share_of_the_largest_dimension_is_of_the_variance_and_not_of_the_size():
    state = torch.tensor([[1.0, 100.0, 0.0], [-1.0, 100.0, 3.0], [1.0, 100.5, 0.0], [-1.0, 100.0, 3.0]])
    variances = state.double().numpy().var(axis=0, ddof=1)
    assert top_dimension_share(state) == pytest.approx(variances.max() / variances.sum())
    assert top_dimension_share(torch.full((4, 3), math.inf)) is None
    assert top_dimension_share(torch.ones(4, 3)) is None
    states = states_of(7)
    shares = score_layers(similarity_criterion(CKA), context(states)).top_dimension_share
    assert shares == pytest.approx([top_dimension_share(s) for s in states[1:]])


def test_token_scores_are_means_over_the_samples_and_none_where_a_sample_has_none():
    values = torch.tensor([[0.1, 0.3, 0.8], [0.2, math.nan, math.inf], [0.5, 0.5, 0.8]])
    given = context(states_of(8, n=3, count=4), between={"cosine": values})
    found = score_layers(token_criterion(TOKEN_MEASURES["cosine"]), given)
    assert found.importance[0] == pytest.approx(0.4)
    assert found.importance[2] == pytest.approx(0.6)
    assert found.undefined == {1: "NaN or infinity in 2 of 3 samples"}
    part = score_layers(token_criterion(TOKEN_MEASURES["cosine"]), given.of(torch.tensor([0])))
    assert part.importance == pytest.approx((0.1, 0.2, 0.5))


def test_what_is_a_number():
    assert [is_number(v) for v in (0.0, -3.5, math.nan, math.inf, -math.inf, Undefined("why"))] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
