"""The default learning rate, against its own table and against what is published."""

import dataclasses
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layersift import TrainSettings
from layersift.config.defaults import Trained, default_rate, fill_epochs, hidden_size, with_defaults


def rate(width=384, layers=6, num_layers=6, **settings):
    return default_rate(TrainSettings(**settings), Trained("classification", width, layers, num_layers))


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, 0.0039),
        ({"layers": 3}, 0.0066),
        ({"layers": 2}, 0.0089),
        ({"width": 768}, 0.0017),
        ({"width": 32}, 0.0039),  # nothing narrower was measured
        ({"rank": 32, "alpha": 64}, 0.0019),
        ({"rank": 128, "alpha": 256}, 0.0019),  # at most halved
        ({"rank": 64, "alpha": 16}, 0.0039),  # a small scale raises nothing
        ({"method": "rslora", "alpha": 2 * 8**0.5}, 0.0039),  # the same scale by its own formula
        ({"method": "full"}, 0.00039),
    ],
)
def test_the_rule_at_hand_computed_points(given_, expected):
    assert rate(**given_) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("width", "published"), [(4096, 2e-4), (5120, 2e-4), (6656, 1e-4), (8192, 1e-4)])
def test_wide_models_meet_the_rates_of_qlora(width, published):
    assert published / 1.5 < rate(width, 32, 32, rank=64, alpha=16) < 1.5 * published


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([256, 384, 768, 2048]))
def test_fewer_layers_never_want_less_and_wider_models_never_more(layers, more, width):
    num_layers = layers + more
    assert rate(width, layers, num_layers) >= rate(width, num_layers, num_layers)
    assert rate(2 * width, layers, num_layers) < rate(width, layers, num_layers)
    assert rate(width, layers, num_layers) <= 2.9 * rate(width, num_layers, num_layers)


def test_a_rate_that_is_given_stays():
    kept = with_defaults(TrainSettings(learning_rate=1e-5), Trained("text", 768, 6, 12))
    assert kept.learning_rate == 1e-5
    assert kept.target_modules == "all-linear"
    assert dataclasses.replace(kept, target_modules=None) == TrainSettings(learning_rate=1e-5)


def test_the_width_is_that_of_the_text_model():
    inner = types.SimpleNamespace(hidden_size=320)
    assert hidden_size(types.SimpleNamespace(hidden_size=99, get_text_config=lambda: inner)) == 320
    assert hidden_size(types.SimpleNamespace(n_embd=64)) == 64
    assert hidden_size(types.SimpleNamespace()) == 768


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        ("classification", 2000, 3),  # 375 steps
        ("classification", 600, 6),  # 228 steps
        ("regression", 128, 20),  # 160 steps, the most
        ("instruction", 128, 3),
        ("text", 1, 3),
    ],
)
def test_few_rows_are_classified_for_more_epochs_and_written_on_for_three(kind, rows, expected):
    settings = fill_epochs(TrainSettings(), kind, rows)
    assert settings.num_epochs == expected
    assert settings.steps(rows) >= 200 or expected in (3, 20)
    assert fill_epochs(TrainSettings(epochs=1.5), kind, rows).num_epochs == 1.5
