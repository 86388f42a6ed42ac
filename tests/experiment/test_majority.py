"""What always giving the most common class would score: of the rows that are judged, and of classifications alone."""

import json

import pytest

from layersift.config.fields import read_as
from layersift.config.recipe import Recipe
from layersift.experiment.prepare import checked
from layersift.progress import Reporter


def prepared(directory, place, labels, kind=None):
    for name in ("train", "test"):
        rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": label} for i, label in enumerate(labels)]
        rows = rows if name == "train" else rows[:9]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": {"name": directory},
        "data": {"data": str(place / "train.jsonl"), "task": kind},
        "evaluate": {"data": str(place / "test.jsonl"), "max_samples": 8},
        "output": str(place / "out"),
    }
    return checked(read_as(Recipe, values, "recipe"), Reporter())[2]


def test_it_is_the_share_of_the_rows_that_are_judged(bert_directory, tmp_path):
    found = prepared(bert_directory, tmp_path, ["a", "b", "b", "c"] * 8)
    judged = [found.encoder.classes[int(example.label)] for example in found.test[""].examples]
    assert len(judged) == 8
    assert found.majority.name == "b"
    assert found.majority.accuracy == {"": pytest.approx(judged.count("b") / 8)}


def test_a_regression_has_none(bert_directory, tmp_path):
    assert prepared(bert_directory, tmp_path, [i / 7 for i in range(24)]).majority is None


def test_written_answers_have_none(llama_directory, tmp_path):
    rows = [{"prompt": f"w{i}", "response": "w5"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"model": {"name": llama_directory}, "data": {"data": str(tmp_path / "rows.jsonl")}, "output": "out"}
    assert checked(read_as(Recipe, values, "recipe"), Reporter())[2].majority is None
