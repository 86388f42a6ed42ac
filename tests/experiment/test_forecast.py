"""What a dry run foretells is what is then trained, and nothing is left behind by it."""

import json

import pytest

from layersift.config.fields import read_as
from layersift.config.recipe import Recipe
from layersift.experiment.compare import Forecast, compare, forecast_comparison, forecast_oracle, forecast_sweep
from layersift.progress import Reporter


@pytest.fixture
def recipe(bert_directory, tmp_path):
    rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": i % 2} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(**compared):
        values = {
            "model": {"name": bert_directory},
            "data": {"data": str(tmp_path / "rows.jsonl")},
            "output": str(tmp_path / "out"),
            "train": {"epochs": 1},
            "compare": {"criteria": ["cka", "last"], "seeds": 1, "random": 1, "strategies": [], **compared},
        }
        return read_as(Recipe, values, "recipe")

    return made


@pytest.mark.slow
def test_a_comparison_trains_as_many_as_were_foretold(recipe, tmp_path, no_kinds):
    found = forecast_comparison(recipe(), Reporter())
    assert not (tmp_path / "out").exists()
    compare(recipe())
    cells = [path for path in (tmp_path / "out" / "cells").glob("*.json") if "base" not in path.name]
    assert found.trainings == len(cells)
    assert found.tuning == 0
    assert found.flops > 0


@pytest.mark.slow
def test_rates_are_tuned_for_each_number_of_layers(recipe, no_kinds):
    plain, tuned = (forecast_comparison(recipe(**more), Reporter()) for more in ({}, {"learning_rates": [1e-4, 1e-3]}))
    assert (tuned.trainings, tuned.tuning) == (plain.trainings, 4)  # half of the layers and all


@pytest.mark.parametrize(("sample", "expected"), [(None, 7 * 3), (4, 5 * 3)])
def test_an_oracle_trains_every_subset_and_all_layers(recipe, sample, expected):
    found = forecast_oracle(recipe(seeds=3), 2, sample, Reporter())
    assert (found.trainings, found.tuning) == (expected, 0)


def test_a_sweep_trains_each_size(recipe):
    assert forecast_sweep(recipe(), "1,3,4", Reporter()).trainings == 3
    assert forecast_sweep(recipe(), None, Reporter()).trainings == 3  # 1, 2 and all 4


def test_it_says_counts_and_flops():
    assert str(Forecast(3, 0, 2.5e12)).startswith("3 trainings; 2.5e+12 FLOPs")
    assert "4 to choose" in str(Forecast(3, 4, 2.5e12))
    assert "cannot be planned" in str(Forecast(3, 0, None))
    numbers = {"trainings": 3, "tuning": 4, "flops": 2.5e12, "searched": 0, "at_most": False}
    assert Forecast(3, 4, 2.5e12).to_json() == numbers
    assert str(Forecast(3, 0, None, at_most=True)).startswith("at most 3 trainings")
    assert str(Forecast(3, 0, None, 2)).endswith("2 searches for a rate, each at most 15% of a training")


def test_flops_are_those_of_all_steps_and_no_step_is_taken(recipe, monkeypatch):
    monkeypatch.setattr("layersift.step.counters.seconds_a_step", None)
    once = forecast_sweep(recipe(), "4", Reporter()).flops
    assert forecast_oracle(recipe(seeds=1), 3, None, Reporter()).flops > once  # all layers, and four more
    twice = read_as(Recipe, {**recipe().to_json(), "train": {**recipe().to_json()["train"], "epochs": 2}}, "recipe")
    assert forecast_sweep(twice, "4", Reporter()).flops == pytest.approx(2 * once)
