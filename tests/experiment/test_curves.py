"""Curves of score against cost: their mean distance at equal cost, and when they first come to a score."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from layersift.config.recipe import read_recipe
from layersift.experiment.choices import ALL
from layersift.experiment.compare import compare
from layersift.experiment.judge import Trained, curves_of, mean_weights, reached
from layersift.records.runs import Look, Result
from layersift.training.watch import SHARES
from variants import choice_of

MANY = 200_001


@st.composite
def a_curve(draw):
    steps = draw(st.lists(st.floats(0.01, 1), min_size=2, max_size=8))
    costs = np.cumsum(steps)
    scores = np.array(draw(st.lists(st.floats(0, 1), min_size=len(steps), max_size=len(steps))))
    edges = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True)))
    low, high = (float(costs[0] + edge * (costs[-1] - costs[0])) for edge in edges)
    return costs, scores, low, high


@given(a_curve())
def test_the_mean_of_a_curve_is_that_of_its_straight_pieces(curve):
    costs, scores, low, high = curve
    if high - low < 1e-6:
        return
    dense = np.linspace(low, high, MANY)
    expected = float(np.interp((dense[1:] + dense[:-1]) / 2, costs, scores).mean())
    assert float(mean_weights(costs, low, high) @ scores) == pytest.approx(expected, abs=1e-4)
    assert mean_weights(costs, low, high).sum() == pytest.approx(1)


@given(a_curve(), st.floats(0, 1))
def test_a_score_is_reached_where_the_curve_first_is_not_below_it(curve, target):
    costs, scores, _, _ = curve
    found = reached(costs, scores, target)
    dense = np.linspace(costs[0], costs[-1], MANY)
    above = np.interp(dense, costs, scores) >= target
    if found is None:
        assert not above.any()
    else:
        assert np.interp(found, costs, scores) >= target - 1e-9
        assert not (above & (dense < found - 1e-9)).any()


def trained_with(choices, seeds, score_of, metric="accuracy", rows=1000):
    """Trainings that are looked at four times, each with so many of its rows right."""
    results = {}
    for choice in choices:
        for cell in choice.cells(seeds):
            looks = []
            for place in range(4):
                right = round(rows * score_of(choice.name, place, cell))
                outcomes = (1.0,) * right + (0.0,) * (rows - right)
                looks.append(Look((place + 1) / 4, right / rows, outcomes))
            results[cell] = Result(cell, {metric: looks[-1].score}, rows, looks[-1].outcomes, looks=tuple(looks))
    return Trained(seeds, results, {})


# Half of the layers cost half as much.
COSTS = SimpleNamespace(
    why_not=lambda method: None, course=lambda cell, shares: [s * cell.mask.count("1") / len(cell.mask) for s in shares]
)
HALF = choice_of("last", 2, ["0011"])
WHOLE = choice_of(ALL, 2, ["1111"])
DRAWN = choice_of("random", 2, ["0101", "1100"])


def test_what_costs_half_is_held_against_all_layers_at_the_same_cost():
    """All layers: .6 .7 .8 .9 at .25 .5 .75 1; half: .6 .65 .7 .75 at .125 .25 .375 .5. From .25 to .5 that is .65 to
    .75 against .6 to .7: .05 better, though .15 worse in the end."""
    choices, seeds = (HALF, WHOLE, DRAWN), (0, 1, 2)

    def score(name, place, cell):
        return 0.6 + 0.1 * place if name == ALL else 0.6 + 0.05 * place + (0.1 if cell.mask == "1100" else 0)

    found = curves_of(choices, trained_with(choices, seeds, score), COSTS)
    half, whole, drawn = found.curves
    assert half.flops == pytest.approx((0.125, 0.25, 0.375, 0.5))
    assert half.scores == pytest.approx((0.6, 0.65, 0.7, 0.75))
    assert half.from_all.value == pytest.approx(0.05)
    assert half.from_all.over == "3 seeds and 1000 test samples"
    assert drawn.from_all.value == pytest.approx(0.1)
    assert "2 draws" in drawn.from_all.over
    assert whole.from_all is None
    assert found.target == pytest.approx(0.895)
    assert (half.reaches, whole.reaches) == (None, pytest.approx(0.75 + 0.25 * 0.95))


def test_lower_losses_are_better():
    seeds = (0, 1)
    trained = trained_with((HALF, WHOLE), seeds, lambda name, place, cell: 0.9 - 0.1 * place, "loss")
    half, whole = curves_of((HALF, WHOLE), trained, COSTS).curves
    assert half.from_all.value == pytest.approx(-0.15)  # .8 to .6 against .9 to .8
    assert half.reaches == pytest.approx(0.375 + 0.125 * 0.9)
    assert whole.reaches == pytest.approx(0.75 + 0.25 * 0.9)


def test_a_choice_of_which_a_training_has_no_looks_has_no_curve_and_is_named():
    trained = trained_with((HALF, WHOLE), (0, 1), lambda *_: 0.5)
    cell = HALF.cells((0, 1))[0]
    results = {**trained.results, cell: Result(cell, {"accuracy": 0.5}, 10)}
    found = curves_of((HALF, WHOLE), Trained((0, 1), results, {}), COSTS)
    assert [curve.choice.name for curve in found.curves] == [ALL]
    assert found.missing == ("last",)


@pytest.mark.slow
def test_a_comparison_whose_rates_are_tuned_has_curves_on_rows_that_it_holds_back(no_kinds, bert_directory, tmp_path):
    rows = [{"text": f"w{i % 7} w{i % 5}", "label": i % 2} for i in range(60)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "model": bert_directory,
        "data": str(tmp_path / "d.jsonl"),
        "select": {"max_samples": 16},
        "train": {"epochs": 2, "batch_size": 8, "prefix_dropout": False},
        "compare": {"criteria": ["last"], "seeds": 1, "random": 1, "strategies": ["freezing:2@0.5"]}
        | {"learning_rates": [1e-3, 3e-3], "budgets": [0.5]},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    found = compare(read_recipe(tmp_path / "r.yaml", [], str(tmp_path / "out")))
    curves = {(c.choice.name, c.choice.budget): c for c in found.curves.curves}
    assert found.curves.missing == ()
    assert len(curves) == len([row for row in found.rows if row.choice.trained])
    whole, freezing, half = (curves[name, None] for name in (ALL, "freezing:2@0.5", "last"))
    assert len(whole.flops) == len(SHARES)
    assert whole.flops == pytest.approx(np.ceil(np.array(SHARES) * 10) / 10, rel=1e-6)
    assert freezing.flops[:4] == pytest.approx(whole.flops[:4], rel=0.02)  # until the cut moves
    assert freezing.flops[-1] < 0.9
    for curve in (whole, freezing, half):
        assert curve.flops[-1] == pytest.approx(curve.choice.flops, rel=1e-9)
    for (_, budget), curve in curves.items():
        assert budget is None or curve.flops[-1] <= budget + 1e-9
    # A tuned recipe holds rows back: 60 less a fifth to test on, of which a fifth to choose by.
    result = Result.load(next((tmp_path / "out" / "cells").glob("*-test-1111.json")))
    assert [len(look.outcomes) for look in result.looks] == [len(result.looks[0].outcomes)] * len(SHARES)
    assert len(result.looks[0].outcomes) == 10
