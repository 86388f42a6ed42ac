"""What a finished training tells of itself: on made-up logs and looks, both ways."""

import json

import numpy as np
import pytest

from layersift.records.runs import Look
from layersift.training.watch import (
    LOG_FILE,
    LOSS_FALLING,
    SCORE_RISING,
    loss_is_falling,
    never_predicted_notice,
    notices_of,
    score_is_rising,
)


def log(shape, noise=0.0, entries=50, seed=0):
    rng = np.random.default_rng(seed)
    return [float(shape(i / entries) + noise * rng.normal()) for i in range(entries)]


@pytest.mark.parametrize(
    ("losses", "falling"),
    [
        (log(lambda at: 1.8 - at, 0.1), True),  # straight down
        (log(lambda at: 1.8 - at, 0.0), True),
        (log(lambda at: 1.8 * np.exp(-at), 0.05), True),
        (log(lambda at: 1.8 * np.exp(-10 * at) + 0.2, 0.05), False),  # converged
        (log(lambda at: 0.7, 0.1), False),  # nothing but noise
        (log(lambda at: 0.7), False),
        (log(lambda at: 1.8 - 0.2 * at, 1.0), False),  # a fall that noise hides
        (log(lambda at: 0.2 + at, 0.1), False),  # up
        (log(lambda at: 1.8 - at, 0.0, entries=11), False),  # too few to tell
        ([], False),
    ],
)
def test_a_loss_that_falls_is_told_from_one_that_has_converged(losses, falling):
    assert loss_is_falling(losses) == falling


def test_noise_alone_seldom_passes_for_a_falling_loss():
    assert sum(loss_is_falling(log(lambda at: 0.7, 0.2, seed=seed)) for seed in range(300)) <= 9


def looks(*shares_right, rows=100):
    """Evaluations at every eighth, with so many right answers."""
    every = [
        Look((place + 1) / 8, right / rows, (1.0,) * right + (0.0,) * (rows - right))
        for place, right in enumerate(shares_right)
    ]
    return tuple(every)


def test_a_score_that_rises_is_told_from_one_that_has_settled():
    assert score_is_rising(looks(20, 30, 40, 50, 60, 65, 75, 85), higher_is_better=True)
    assert not score_is_rising(looks(20, 60, 80, 84, 85, 85, 84, 86), higher_is_better=True)
    assert not score_is_rising(looks(20, 60, 80, 90, 90, 90, 85, 70), higher_is_better=True)  # it falls
    assert not score_is_rising(looks(20), higher_is_better=True)
    assert not score_is_rising((), higher_is_better=True)


def test_of_losses_lower_is_better():
    rng = np.random.default_rng(0)
    levels = (2.0, 1.6, 1.4, 1.2, 1.1, 1.0, 0.8, 0.7)
    falling = tuple(Look((i + 1) / 8, level, tuple(level + 0.1 * rng.random(50))) for i, level in enumerate(levels))
    assert score_is_rising(falling, higher_is_better=False)
    assert not score_is_rising(falling, higher_is_better=True)


def test_all_of_it_is_read_from_a_run_directory(tmp_path):
    entries = ({"step": step, "loss": loss} for step, loss in enumerate(log(lambda at: 1 - at)))
    (tmp_path / LOG_FILE).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (*rest, last) = looks(20, 30, 40, 50, 60, 65, 75, 85)
    last = Look(last.share, last.score, last.outcomes, never_predicted=("B",))
    assert notices_of(tmp_path, (*rest, last), True) == (
        LOSS_FALLING,
        SCORE_RISING,
        never_predicted_notice(["B"], "held-back"),
    )
    assert notices_of(tmp_path / "empty", (), True) == ()


def test_many_classes_are_counted():
    notice = never_predicted_notice([f"class {i}" for i in range(8)], "test")
    assert "'class 4'" in notice
    assert "'class 5'" not in notice
    assert "3 more" in notice
