"""Measures where numbers are awkward: ties, tiny and far-off states, dimensions of outliers, the fewest samples."""

import math

import numpy as np
import pytest
import torch

from layersift.measures import MEASURES, TOKEN_MEASURES
from layersift.measures.cka import PreparedCKA, u_centre
from layersift.measures.procrustes import prepare_procrustes
from layersift.measures.robust import tame
from layersift.measures.rsa import prepare_rsa

ALL = pytest.mark.parametrize("measure", MEASURES.values(), ids=lambda m: m.name)


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_the_fewest_samples_are_those_that_the_estimators_need():
    """Four for HSIC_1, which divides by n (n - 3); two for what is only centred; eight for quartiles."""
    fewest = {name: measure.min_samples for name, measure in MEASURES.items()}
    assert fewest == {"cka": 4, "cka-biased": 2, "cka-rbf": 4, "cka-robust": 8, "procrustes": 2, "rsa": 4}
    for measure in MEASURES.values():
        n = measure.min_samples
        assert math.isfinite(measure(normal(0, n, 12), normal(1, n, 12)))
    assert u_centre(normal(0, 3, 3) @ normal(0, 3, 3).T).abs().max() < 1e-12  # of three samples nothing is left


@ALL
@pytest.mark.parametrize(("d1", "d2"), [(8, 33), (33, 8)])
def test_a_wide_and_a_narrow_representation_are_compared_in_either_order(measure, d1, d2):
    x, y = normal(0, 20, d1), normal(1, 20, d2)
    y[:, :5] += x[:, :5]
    assert measure(x, y) == pytest.approx(measure(y, x), abs=1e-12)
    padded = [torch.nn.functional.pad(z, (0, 40 - z.shape[1])) for z in (x, y)]
    if measure.name != "rsa":  # which centres over the dimensions
        assert measure(x, y) == pytest.approx(measure(*padded), abs=1e-7)


@ALL
def test_single_precision_is_computed_in_double(measure):
    x, y = normal(0, 16, 6).float(), normal(1, 16, 6).float()
    assert measure(x, y) == measure(x.double(), y.double())


@ALL
def test_more_samples_on_either_side_are_refused(measure):
    for sizes in ((12, 13), (13, 12)):
        with pytest.raises(ValueError, match=f"n = {sizes[0]} and n = {sizes[1]}"):
            measure(*(normal(0, n, 3) for n in sizes))


@ALL
def test_one_representation_that_does_not_vary_is_enough_for_there_to_be_no_similarity(measure):
    for d in (3, 40):
        x, constant = normal(0, 16, d), torch.full((16, d), 0.25, dtype=torch.float64)
        assert math.isnan(measure(x, constant))
        assert math.isnan(measure(constant, x))


@pytest.mark.parametrize("name", ["cka", "cka-biased", "cka-rbf", "procrustes"])
@pytest.mark.parametrize("n", [12, 40])
def test_an_origin_far_off_changes_nothing(name, n):
    x, y = normal(0, n, 16), normal(1, n, 16)
    y[:, :9] += x[:, :9]
    near = MEASURES[name](x, y)
    assert MEASURES[name](x + 1e6, y - 1e5) == pytest.approx(near, abs=1e-7)


def test_a_norm_that_rounding_makes_negative_is_none():
    x, y = normal(0, 12, 3), normal(1, 12, 3)
    prepared = [PreparedCKA(z - z.mean(dim=0), None, norm) for z, norm in ((x, -1e-18), (y, 2.0))]
    assert math.isnan(MEASURES["cka"].compare(*prepared))
    assert math.isnan(MEASURES["cka"].compare(*reversed(prepared)))


def test_a_u_centred_matrix_has_no_diagonal_and_sums_of_zero():
    gram = normal(0, 7, 7)
    gram = gram + gram.T
    found = u_centre(gram)
    assert found.diagonal().abs().max() == 0
    assert found.sum(dim=0).abs().max() < 1e-12
    assert torch.allclose(found, found.T)
    shifted = gram + 3.0  # what is added to all, or to a row and its column, is taken out again
    shifted[2] += 1.5
    shifted[:, 2] += 1.5
    assert torch.allclose(u_centre(shifted), found)


# The robust form


def test_a_dimension_of_outliers_alone_is_left_out():
    x, y = normal(0, 20, 6), normal(1, 20, 6)
    y[:, :3] += x[:, :3]
    flat = torch.full((20, 1), 2.0, dtype=torch.float64)
    flat[3], flat[11] = 1e4, -7.0  # both quartiles are 2
    plain = MEASURES["cka-robust"](x, y)
    assert MEASURES["cka-robust"](torch.cat([x, flat], dim=1), y) == pytest.approx(plain, abs=1e-12)
    assert MEASURES["cka-robust"](x, torch.cat([flat, y], dim=1)) == pytest.approx(plain, abs=1e-12)
    assert torch.equal(tame(torch.cat([x, flat], dim=1))[:, -1], torch.zeros(20, dtype=torch.float64))


def test_samples_are_of_length_one_and_one_in_the_middle_of_everything_is_none():
    x = normal(0, 9, 4)
    x[4] = torch.cat([x[:4], x[5:]]).quantile(0.5, dim=0)
    lengths = tame(x).norm(dim=1)
    assert lengths[4] == 0
    assert lengths[[0, 1, 2, 3, 5, 6, 7, 8]].tolist() == pytest.approx([1.0] * 8)


# Ranks of distances


def test_equal_distances_are_ties_although_they_are_rounded_otherwise():
    """Rows that come twice, each copy of another scale and level, which a correlation does not see."""
    rows = normal(0, 5, 9)
    x = torch.cat([rows, rows, rows])
    y = x * torch.from_numpy(np.random.default_rng(1).uniform(0.1, 7, (15, 1))) + normal(2, 15, 1)
    assert MEASURES["rsa"](x, y) == pytest.approx(1.0, abs=1e-12)
    ranks = prepare_rsa(x)
    assert len(set(ranks.tolist())) == 1 + 10  # of a row and itself, and of the ten pairs of rows
    assert ranks.sum().abs() < 1e-9


def test_a_sample_without_any_contrast_has_no_distance():
    x, y = normal(0, 8, 5), normal(1, 8, 5)
    x[3] = 1.5
    assert math.isnan(MEASURES["rsa"](x, y))
    assert math.isnan(MEASURES["rsa"](torch.cat([y[:1]] * 8), y))  # all distances are alike


def test_rsa_of_distances_written_out():
    assert MEASURES["rsa"].compare(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([2.0, 0.0, -2.0])) == pytest.approx(-1)
    assert MEASURES["rsa"].compare(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-1.0, 1.0, 0.0])) == pytest.approx(0.5)


# Rotations


@pytest.mark.parametrize(("n", "d"), [(6, 30), (30, 6)])
def test_what_procrustes_prepares_has_norm_one_and_the_inner_products_of_the_samples(n, d):
    x = normal(0, n, d)
    centred = x - x.mean(dim=0)
    prepared = prepare_procrustes(x)
    assert prepared.shape[1] == min(n, d)
    assert float(torch.linalg.matrix_norm(prepared)) == pytest.approx(1)
    wanted = centred @ centred.T / float(torch.linalg.matrix_norm(centred)) ** 2
    assert torch.allclose(prepared @ prepared.T, wanted, atol=1e-12)


# Tokens


@pytest.mark.parametrize("measure", TOKEN_MEASURES.values(), ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_states_are_at_no_negative_distance(measure, dtype):
    x = normal(0, 4000, 7).to(dtype)
    found = measure.between(x, x.clone())
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1e-6
    opposite = measure.between(x, -x)
    assert float(opposite.max()) <= measure.range[1]
    expected = {"cosine": 2.0, "angular": 1.0, "update-norm": 2.0}[measure.name]
    assert opposite.tolist() == pytest.approx([expected] * 4000, rel=1e-6)


@pytest.mark.parametrize("measure", TOKEN_MEASURES.values(), ids=lambda m: m.name)
def test_tiny_states_are_told_apart_as_large_ones_are(measure):
    x, y = normal(0, 50, 6), normal(1, 50, 6)
    large, tiny = measure.between(x, y), measure.between(1e-9 * x, 1e-9 * y)
    torch.testing.assert_close(tiny, large, rtol=1e-6, atol=0)


def test_small_angles_keep_their_digits():
    angles = torch.tensor([1e-7, 1e-5, 1e-3, 0.5, 3.0], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(5, 2)
    y = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = TOKEN_MEASURES["angular"].between(x, 3 * y)
    assert found.tolist() == pytest.approx((angles / math.pi).tolist(), rel=1e-8)


def test_an_update_is_relative_to_what_enters():
    x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 6.5]])
    assert TOKEN_MEASURES["update-norm"].between(x, y).item() == pytest.approx(0.5)
    assert TOKEN_MEASURES["cosine"].between(x, torch.tensor([[4.0, -3.0]])).item() == pytest.approx(1.0)
    assert TOKEN_MEASURES["angular"].between(x, torch.tensor([[4.0, -3.0]])).item() == pytest.approx(0.5)
