"""Layer importances: against a direct computation, and where none exists."""

import numpy as np
import pytest
import torch

from contexts import represented
from layersift.errors import SelectionError
from layersift.measures import MEASURES
from layersift.score.context import top_dimension_share, why_undefined
from layersift.score.criteria.similarity import similarity_criterion
from layersift.score.criterion import score_layers


def _states(seed=0, n=24, d=10, layers=4):
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(n, d, generator=generator)]
    for _ in range(layers):
        states.append(states[-1] + torch.rand(1, generator=generator) * torch.randn(n, d, generator=generator))
    return states


def _scores(states, measure="cka", dtype=torch.float32):
    return score_layers(similarity_criterion(MEASURES[measure]), represented(states, dtype))


def test_importance_is_one_minus_cka_of_input_and_output():
    states = _states()
    scores = _scores(states, "cka-biased")
    for layer, value in enumerate(scores.importance):
        x, y = (s.double().numpy() - s.double().numpy().mean(0) for s in states[layer : layer + 2])
        cka = np.square(x.T @ y).sum() / np.sqrt(np.square(x.T @ x).sum() * np.square(y.T @ y).sum())
        assert value == pytest.approx(1 - cka, abs=1e-12)
    assert scores.ranking == tuple(np.argsort([-v for v in scores.importance], kind="stable"))


def test_a_constant_input_leaves_the_layer_undefined_and_unranked():
    states = _states()
    states[0] = torch.full_like(states[0], 0.1) + torch.randn(10, generator=torch.Generator().manual_seed(5))
    scores = _scores(states)
    assert scores.importance[0] is None
    assert scores.undefined == {0: "its input is constant over the sample"}
    assert sorted(scores.ranking) == [1, 2, 3]


def test_constant_up_to_the_models_rounding_is_constant():
    base = torch.randn(1, 10) * 100
    noisy = base * (1 + torch.finfo(torch.float32).eps * (2 * torch.rand(24, 10) - 1))
    assert why_undefined(noisy, torch.float32) == "constant over the sample"
    real = base.repeat(24, 1)
    real[:, 3] += 0.01 * torch.arange(24)
    assert why_undefined(real, torch.float32) is None
    assert why_undefined(torch.randn(24, 10).bfloat16().float(), torch.bfloat16) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_undefined_on_both_sides_of_the_state(bad):
    states = _states()
    states[2][5, 1] = bad
    scores = _scores(states)
    assert [v is None for v in scores.importance] == [False, True, True, False]
    assert scores.undefined[1] == "its output has NaN or infinity in 1 of 24 samples"
    assert scores.undefined[2].startswith("its input has NaN")


def test_too_few_samples():
    with pytest.raises(SelectionError, match="cka needs at least 4 samples, got 3"):
        _scores(_states(n=3))


def test_ties_go_to_the_lower_layer():
    x = _states()[0]
    assert _scores([x, x, x, x]).ranking == (0, 1, 2)


def test_share_of_the_largest_dimension():
    state = torch.zeros(4, 3)
    state[:, 0] = torch.tensor([1.0, -1, 1, -1]) * 3
    state[:, 1] = torch.tensor([1.0, -1, 1, -1])
    assert top_dimension_share(state) == pytest.approx(0.9)
    assert top_dimension_share(torch.ones(4, 3)) is None
