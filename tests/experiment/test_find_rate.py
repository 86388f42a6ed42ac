"""`--learning-rate auto`: the rate chosen of known scores, what it may cost, and that a resume searches no more."""

import json
import math
import shutil

import numpy as np
import pytest
import yaml

import layersift
from layersift.errors import LayersiftError, TrainingError
from layersift.evaluation.metrics import Evaluation
from layersift.experiment import rates as module
from layersift.experiment.rates import STEP, search
from layersift.records.runs import RateSearch, TriedRate
from training import interrupted_at

ROWS = 400


def accuracy(share):
    """An evaluation with that share of right answers, the first rows being right."""
    right = round(share * ROWS)
    outcomes = (1.0,) * right + (0.0,) * (ROWS - right)
    return Evaluation({"accuracy": right / ROWS}, ROWS, outcomes)


def loss(value):
    outcomes = tuple(value + 0.01 * math.sin(i) for i in range(ROWS))
    return Evaluation({"loss": float(np.mean(outcomes))}, ROWS, outcomes, (1,) * ROWS)


def choose(scores, make=accuracy):
    """The power of the root of three that is chosen where trainings at each power score so, and those tried."""
    tried = []

    def attempt(rate):
        power = round(math.log(rate / 0.004, STEP))
        tried.append(power)
        return None if scores[power] is None else make(scores[power])

    rate, table, _ = search(0.004, attempt)
    assert len(table) == len(tried) <= module.MOST_TRIED
    assert [t.rate for t in table] == sorted(t.rate for t in table)
    return round(math.log(rate / 0.004, STEP)), sorted(tried)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({-1: 0.80, 0: 0.80, 1: 0.80}, 0),  # nothing is told apart: the rule's
        ({-1: 0.20, 0: 0.40, 1: 0.80}, 0),  # short trainings like high rates: never above the rule's
        ({-1: 0.80, 0: 0.80, 1: 0.30}, -1),  # next to a collapse while a lower one is as good
        ({-1: 0.80, 0: 0.80, 1: None}, -1),
        ({-1: 0.60, 0: 0.80, 1: None}, 0),  # nothing else is as good
        ({-2: 0.78, -1: 0.78, 0: 0.20, 1: None}, -2),
        ({-2: 0.80, -1: 0.78, 0: 0.70, 1: 0.65}, -2),
        ({-2: 0.60, -1: 0.80, 0: 0.70, 1: 0.65}, -1),
        ({-2: 0.78, -1: 0.78, 0: None, 1: None}, -2),
        ({-2: 0.60, -1: 0.78, 0: None, 1: None}, -1),  # nothing else is as good
    ],
)
def test_the_middle_of_what_is_good_is_chosen(scores, chosen):
    assert choose(scores)[0] == chosen


def test_losses_are_better_where_they_are_lower():
    assert choose({-1: 1.3, 0: 1.2, 1: 1.1}, loss)[0] == 0
    assert choose({-2: 1.0, -1: 1.1, 0: 1.2, 1: 1.3}, loss)[0] == -2


def test_nothing_finite_is_an_error():
    with pytest.raises(TrainingError, match="give --learning-rate"):
        choose({-2: None, -1: None, 0: None, 1: None})


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Rows, and a search whose short trainings may have one step."""
    monkeypatch.setattr(module, "FEWEST_STEPS", 1)
    rows = [{"text": f"w{i % 17} w{(i * 7) % 40} w{i % 11}", "label": int(i % 17 > 8)} for i in range(204)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


COMMON = ["--data", "rows.jsonl", "--batch-size", "16", "--epochs", "6", "--learning-rate", "auto"]


def test_a_rate_is_found_kept_and_not_looked_for_again(place, bert_directory, call, monkeypatch):
    monkeypatch.setattr(module, "FEWEST_HELD_BACK", 1)
    with interrupted_at(monkeypatch, 5):
        assert call("train", bert_directory, *COMMON, "-o", "run", cwd=place).returncode == 130
    begun = json.loads((place / "run.partial" / "training.json").read_text())
    found = begun["learning-rate auto"]
    assert begun["settings"]["learning_rate"] == found["chosen"]
    assert 0 < found["spent"] <= module.MOST_SPENT
    assert 1 <= found["held_back"] <= 41
    assert found["chosen"] in [tried["rate"] for tried in found["tried"]]
    shutil.copytree(place / "run.partial", place / "named.partial")
    (place / "named.partial" / "training.json").write_text(json.dumps(begun | {"learning-rate auto": None}))
    monkeypatch.setattr(module, "search", lambda *_: pytest.fail("searched once more"))
    result = call("train", bert_directory, *COMMON, "-o", "run", "--resume", cwd=place)
    assert result.returncode == 0, result.stderr
    assert f"learning rate: {found['chosen']:g}, " in result.stdout
    assert json.loads((place / "run" / "layersift.json").read_text())["rate_search"] == found
    refused = call("train", bert_directory, *COMMON, "-o", "named", "--resume", cwd=place)
    assert (refused.returncode, "resume without" in refused.stderr) == (2, True)


def test_without_room_for_it_the_rule_stands_and_says_why(place, bert_directory, call):
    (place / "few.jsonl").write_text("\n".join((place / "rows.jsonl").read_text().split("\n")[:60]))
    words = ["--batch-size", "16", "--epochs", "0.5", "--learning-rate", "auto"]
    for data, said in (("few", "60 rows are too few to hold some back; 200 would"), ("rows", "steps would be enough")):
        result = call("train", bert_directory, "--data", f"{data}.jsonl", *words, "-o", data, cwd=place)
        assert said in result.stdout, result.stderr
        record = json.loads((place / data / "layersift.json").read_text())
        assert record["settings"]["learning_rate"] == record["rate_search"]["rule"]


def test_words_that_are_no_rate_are_refused(place, bert_directory, call):
    for word in ("fast", "nan", "0", "10"):
        result = call("train", bert_directory, *COMMON[:-1], word, "-o", "run", cwd=place)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), word
        assert "learning-rate" in result.stderr
    told = call("train", bert_directory, *COMMON, "-o", "run", "--dry-run", cwd=place)
    assert "auto, around" in told.stdout
    with pytest.raises(LayersiftError, match="two ways to choose"):
        layersift.Recipe(
            layersift.ModelSource("m"),
            layersift.DataSettings("d"),
            "o",
            train=layersift.TrainSettings(learning_rate="auto"),
            compare=layersift.CompareSettings(learning_rates=[0.001, 0.002]),
        )


RECIPE = """
model: {model}
data: rows.jsonl
output: out
train: {{epochs: 1, batch_size: 16, learning_rate: auto}}
select: {{top_n: 2, max_samples: 16}}
variants: [all, last]
compare: {{criteria: [last], seeds: 1, random: 1, strategies: []}}
"""


@pytest.fixture
def known(place, bert_directory, monkeypatch):
    """A recipe in a place where a search finds what it is told to, and the layers searched for."""
    (place / "recipe.yaml").write_text(RECIPE.format(model=bert_directory))
    searched = []

    def find(task, table, selection, settings, seed, reporter):
        searched.append((selection.selected_layers, len(table.rows)))
        chosen = (0.002, 0.004)[len(selection.selected_layers) == 2]
        return RateSearch(chosen, 0.02, (TriedRate(chosen, 0.9),), "accuracy", 20, 40, 0.1)

    monkeypatch.setattr(module, "find_rate", find)
    return searched


def test_a_recipes_variants_each_have_the_rate_that_is_found_for_them(known, place, call):
    planned = call("run", "recipe.yaml", "--dry-run", cwd=place)
    assert "auto, around" in planned.stdout, planned.stderr
    assert known == []
    result = call("run", "recipe.yaml", cwd=place)
    assert result.returncode == 0, result.stderr
    assert [len(layers) for layers, _ in known] == [4, 2]
    assert all(rows < 204 for _, rows in known)  # not the test rows
    rates = {
        r["variant"]: r["learning_rate"] for r in json.loads((place / "out" / "results.json").read_text())["results"]
    }
    assert rates == {"all": 0.002, "last": 0.004}
    assert len(json.loads((place / "out" / "rate_searches.json").read_text())) == 2
    assert call("run", "recipe.yaml", cwd=place).returncode == 0
    assert len(known) == 2  # kept


def test_a_comparison_searches_once_a_number_of_layers(known, place, call):
    planned = call("compare", "recipe.yaml", "--dry-run", cwd=place)
    assert "2 searches for a rate" in planned.stdout, planned.stderr
    result = call("compare", "recipe.yaml", cwd=place)
    assert result.returncode == 0, result.stderr
    assert sorted(len(layers) for layers, _ in known) == [2, 4]
    cells = [json.loads(path.read_text())["cell"] for path in (place / "out" / "cells").glob("*.json")]
    assert {(c["mask"].count("1"), c["train"]["learning_rate"]) for c in cells if c["mask"]} >= {(2, 0.004), (4, 0.002)}


def test_advice_names_the_rate_found_for_what_it_recommends(known, place, bert_directory, call):
    words = ["--data", "rows.jsonl", "--epochs", "6", "--learning-rate", "auto", "-o", "advice"]
    result = call("advise", bert_directory, *words, cwd=place)
    assert result.returncode == 0, result.stderr
    assert len(known) == 1
    written = yaml.safe_load((place / "advice" / "recipe.yaml").read_text())
    chosen = (0.002, 0.004)[len(known[0][0]) == 2]
    assert written["train"]["learning_rate"] == chosen
    advice = json.loads((place / "advice" / "advice.json").read_text())
    assert advice["rate_search"]["rule"] == 0.02
    assert f"learning rate: {chosen:g}, the rule's is 0.02" in " ".join(result.stdout.split())


@pytest.mark.slow
def test_python_finds_it_as_the_command_does(place, bert_directory, monkeypatch):
    monkeypatch.setattr(module, "FEWEST_HELD_BACK", 1)
    settings = layersift.TrainSettings(batch_size=16, epochs=9.0, learning_rate="auto")
    record = layersift.train(str(bert_directory), str(place / "rows.jsonl"), "last:2", place / "run", settings)
    assert record.settings.learning_rate == record.rate_search.chosen
    assert record.rate_search.tried
