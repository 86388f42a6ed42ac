"""What a dry run foretells is what is then trained, and nothing is left behind by it."""

import json

import pytest

from layersift.config.fields import read_as
from layersift.config.recipe import Recipe
from layersift.experiment.compare import compare
from layersift.experiment.forecast import Forecast, forecast_comparison, forecast_oracle, forecast_sweep
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
    cells = [path for path in (tmp_path / "out" / "cells").glob("*.json") if "untouched" not in path.name]
    assert found.trainings == len(cells)
    assert found.tuning == 0
    assert found.seconds > 0


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


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "their time cannot be planned"), (3.2, "about 4 s"), (600, "about 10 min"), (7200, "about 2.0 h")],
)
def test_it_is_told_in_words(seconds, said):
    assert said in str(Forecast(3, 0, seconds))
    assert str(Forecast(3, 4, seconds)).startswith("3 trainings and at least 4 to choose learning rates")


def test_time_is_that_of_all_steps_at_this_machines_pace(recipe, monkeypatch):
    pace = 1e6
    monkeypatch.setattr("layersift.experiment.prices.Prices.measured_pace", lambda prices, reporter: pace)
    once = forecast_sweep(recipe(), "4", Reporter()).seconds
    assert forecast_oracle(recipe(seeds=1), 3, None, Reporter()).seconds > once  # all layers, and four more
    pace = 2e6
    assert forecast_sweep(recipe(), "4", Reporter()).seconds == pytest.approx(once / 2)
    twice = read_as(Recipe, {**recipe().to_json(), "train": {**recipe().to_json()["train"], "epochs": 2}}, "recipe")
    assert forecast_sweep(twice, "4", Reporter()).seconds == pytest.approx(once)
