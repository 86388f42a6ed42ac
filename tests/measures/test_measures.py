"""Every declared fact of every measure, against independent float64 computations and by property."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import pdist

from layersift.measures import MEASURES, TOKEN_MEASURES

ALL = pytest.mark.parametrize("measure", MEASURES.values(), ids=lambda m: m.name)


def _hsic0(k, q):
    """tr(K H Q H) / (n - 1)^2, written as in the paper."""
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return np.trace(k @ h @ q @ h) / (n - 1) ** 2


def _hsic1(k, q):
    """Song et al. 2012 eq. 5, term by term."""
    n = len(k)
    k, q = k - np.diag(np.diag(k)), q - np.diag(np.diag(q))
    one = np.ones(n)
    terms = np.trace(k @ q) + (one @ k @ one) * (one @ q @ one) / ((n - 1) * (n - 2))
    return (terms - 2 / (n - 2) * (one @ k @ q @ one)) / (n * (n - 3))


def _reference(hsic):
    def cka(x, y):
        k, q = x @ x.T, y @ y.T
        return hsic(k, q) / np.sqrt(hsic(k, k) * hsic(q, q))

    return cka


def _rbf(x):
    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    s = 0.8 * np.median(distances[np.triu_indices(len(x), 1)])
    return np.exp(-(distances**2) / (2 * s**2))


def _cka_rbf(x, y):
    k, q = _rbf(x), _rbf(y)
    return _hsic1(k, q) / np.sqrt(_hsic1(k, k) * _hsic1(q, q))


def _robust(x, y):
    def tame(a):
        low, middle, high = np.percentile(a, [25, 50, 75], axis=0)
        a = (a - middle) / (high - low)
        return a / np.linalg.norm(a, axis=1, keepdims=True)

    return _reference(_hsic1)(tame(x), tame(y))


def _best_rotation(x, y):
    """1 - half the squared distance after the best rotation, found by scipy."""
    a, b = ((z - z.mean(0)) / np.linalg.norm(z - z.mean(0)) for z in _same_width(x, y))
    turn, _ = scipy.linalg.orthogonal_procrustes(a, b)
    return 1 - np.square(a @ turn - b).sum() / 2


def _same_width(x, y):
    d = max(x.shape[1], y.shape[1])
    return [np.pad(z, ((0, 0), (0, d - z.shape[1]))) for z in (x, y)]


def _rsa(x, y):
    return stats.spearmanr(*(pdist(z, "correlation") for z in (x, y))).statistic


REFERENCES = {
    "cka": _reference(_hsic1),
    "cka-biased": _reference(_hsic0),
    "cka-rbf": _cka_rbf,
    "cka-robust": _robust,
    "procrustes": _best_rotation,
    "rsa": _rsa,
}


def _data(seed, n, d1, d2, shared=0.7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d1)) * rng.uniform(0.1, 3, size=d1) + rng.normal(size=d1)
    y = shared * x @ rng.normal(size=(d1, d2)) / np.sqrt(d1) + (1 - shared) * rng.normal(size=(n, d2))
    return x, y


def _orthogonal(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


@ALL
@pytest.mark.parametrize(("n", "d1", "d2"), [(8, 40, 40), (40, 8, 8), (20, 8, 33), (33, 33, 33), (9, 5, 5)])
def test_equals_an_independent_computation(measure, n, d1, d2):
    x, y = _data(0, n, d1, d2)
    got = measure(torch.from_numpy(x), torch.from_numpy(y))
    assert got == pytest.approx(REFERENCES[measure.name](x, y), abs=1e-10)


@ALL
@given(seed=st.integers(0, 10_000), n=st.integers(8, 30), d=st.integers(3, 40))
@settings(max_examples=30, deadline=None)
def test_declared_range_symmetry_and_self_similarity(measure, seed, n, d):
    x, y = (torch.from_numpy(a) for a in _data(seed, n, d, d, shared=0.4))
    low, high = measure.range
    value = measure(x, y)
    assert low - 1e-9 <= value <= high + 1e-9
    assert value == pytest.approx(measure(y, x), abs=1e-9)
    assert measure(x, x) == pytest.approx(high if measure.higher_is_more_similar else low, abs=1e-9)


@ALL
@pytest.mark.parametrize("shape", [(24, 10), (10, 24)])
@pytest.mark.parametrize("kind", ["orthogonal", "isotropic_scaling", "translation", "invertible_linear"])
def test_declared_invariances_hold_and_the_others_do_not(measure, kind, shape):
    n, d = shape
    x, y = _data(3, n, d, d)
    rng = np.random.default_rng(7)
    changed = {
        "orthogonal": lambda: x @ _orthogonal(rng, d),
        "isotropic_scaling": lambda: 17.0 * x,
        "translation": lambda: x + 5 * rng.normal(size=d),
        "invertible_linear": lambda: x @ np.diag(np.geomspace(0.01, 100, d)) @ _orthogonal(rng, d),
    }[kind]()
    before = measure(torch.from_numpy(x), torch.from_numpy(y))
    after = measure(torch.from_numpy(changed), torch.from_numpy(y))
    assert (abs(before - after) < 1e-8) == (kind in measure.invariant_to)


@ALL
def test_more_noise_is_less_similar(measure):
    x, noise = _data(1, 64, 16, 16, shared=0.0)
    values = [measure(torch.from_numpy(x), torch.from_numpy(x + s * noise)) for s in (0.0, 0.5, 2.0, 20.0)]
    assert values == sorted(values, reverse=measure.higher_is_more_similar)


@pytest.mark.parametrize("measure", [m for m in MEASURES.values() if m.subset], ids=lambda m: m.name)
@pytest.mark.parametrize(("n", "d"), [(40, 60), (60, 12)])
def test_a_subset_of_what_was_prepared_is_what_the_subset_would_prepare(measure, n, d):
    x, y = map(torch.from_numpy, _data(4, n, d, d))
    rows = torch.from_numpy(np.random.default_rng(0).choice(n, n // 2, replace=False))
    whole = [measure.subset(measure.prepare(z), rows) for z in (x, y)]
    assert measure.compare(*whole) == pytest.approx(measure(x[rows], y[rows]), abs=1e-10)


@ALL
def test_too_few_samples_and_wrong_shapes_are_named(measure):
    few = torch.randn(measure.min_samples - 1, 5)
    with pytest.raises(ValueError, match=f"at least {measure.min_samples} samples, got {len(few)}"):
        measure(few, few)
    with pytest.raises(ValueError, match=r"`y` of shape \(n, d\), got \(3,\)"):
        measure(torch.randn(8, 2), torch.randn(3))
    with pytest.raises(ValueError, match="n = 8 and n = 9"):
        measure(torch.randn(8, 2), torch.randn(9, 2))


@ALL
def test_a_constant_representation_has_no_similarity(measure):
    assert np.isnan(measure(torch.ones(16, 4), torch.randn(16, 4)))
    assert np.isnan(measure(torch.ones(16, 40), torch.randn(16, 40)))


def test_independent_data_look_similar_to_the_biased_estimator_only():
    x, y = (torch.randn(64, 2048, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1))
    assert MEASURES["cka-biased"](x, y) == pytest.approx(2048 / (2048 + 64), abs=0.01)
    assert abs(MEASURES["cka"](x, y)) < 0.03


def test_no_dimension_and_no_sample_dominates_the_robust_form():
    """P4 and P5 of the published pitfalls: plain CKA calls unrelated data alike, or related data different."""
    x, y = _data(2, 128, 64, 64, shared=0.0)
    shared = np.random.default_rng(5).normal(size=128)
    x[:, 7], y[:, 7] = 30 * x.std() * shared, 30 * y.std() * shared
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    assert MEASURES["cka"](a, b) > 0.9
    assert MEASURES["cka-robust"](a, b) < 0.15

    x, y = _data(2, 128, 64, 64, shared=0.0)
    x[3], y[3] = 30 * x[3], 30 * y[3]
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    assert MEASURES["cka-biased"](a, b) > 0.9
    assert MEASURES["cka-robust"](a, b) < 0.15

    x, y = _data(2, 128, 64, 64, shared=0.0)
    growing = np.exp(np.random.default_rng(6).normal(size=(128, 1)))
    same, grown = torch.from_numpy(x - x.mean(0)), torch.from_numpy((x - x.mean(0)) * growing)
    assert MEASURES["cka"](same, grown) < 0.75
    assert MEASURES["cka-robust"](same, grown) > 0.9


TOKENS = pytest.mark.parametrize("measure", TOKEN_MEASURES.values(), ids=lambda m: m.name)
TOKEN_REFERENCES = {
    "cosine": lambda x, y: 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y),
    "angular": lambda x, y: math.acos(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) / math.pi,
    "update-norm": lambda x, y: np.linalg.norm(y - x) / np.linalg.norm(x),
}


@TOKENS
def test_token_measures_equal_an_independent_computation_for_each_token(measure):
    x, y = (np.random.default_rng(s).normal(size=(3, 5, 12)) for s in (0, 1))
    got = measure.between(torch.from_numpy(x), torch.from_numpy(y))
    assert got.shape == (3, 5)
    for i in range(3):
        for t in range(5):
            assert float(got[i, t]) == pytest.approx(TOKEN_REFERENCES[measure.name](x[i, t], y[i, t]), abs=1e-12)


@TOKENS
@given(seed=st.integers(0, 10_000), d=st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_token_measures_stay_in_their_range_and_are_zero_for_equal_states(measure, seed, d):
    x, y = (torch.from_numpy(np.random.default_rng(seed + s).normal(size=(4, d))) for s in (0, 1))
    low, high = measure.range
    assert bool(((measure.between(x, y) >= low) & (measure.between(x, y) <= high)).all())
    assert measure.between(x, x).tolist() == pytest.approx([0.0] * 4, abs=1e-7)


@TOKENS
@pytest.mark.parametrize("kind", ["orthogonal", "joint_scaling", "separate_scaling", "translation"])
def test_declared_invariances_of_token_measures(measure, kind):
    rng = np.random.default_rng(3)
    x, y, turn, shift = rng.normal(size=(6, 9)), rng.normal(size=(6, 9)), _orthogonal(rng, 9), rng.normal(size=9)
    changed = {
        "orthogonal": (x @ turn, y @ turn),
        "joint_scaling": (7 * x, 7 * y),
        "separate_scaling": (7 * x, 3 * y),
        "translation": (x + shift, y + shift),
    }[kind]
    before = measure.between(torch.from_numpy(x), torch.from_numpy(y))
    after = measure.between(*map(torch.from_numpy, changed))
    assert torch.allclose(before, after, atol=1e-10) == (kind in measure.invariant_to)


@pytest.mark.parametrize("name", MEASURES)
def test_what_does_not_vary_has_no_similarity_whatever_its_mean_is_rounded_to(name):
    """Ten times 3.7 have a mean that is not 3.7, and the rounding is no variation."""
    generator = torch.Generator().manual_seed(5)
    varying = torch.randn(10, 6, generator=generator)
    for width in (3, 20):
        constant = (torch.randn(1, width, generator=generator) * 3.7).expand(10, width)
        assert math.isnan(MEASURES[name](constant, varying))
        assert math.isnan(MEASURES[name](varying, constant))
