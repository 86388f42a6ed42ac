"""What the length limit cuts and which rows come again stands in every file that is made of them."""

import json

import numpy as np
import pytest

from cli import layersift


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(2)
    rows = [{"text": " ".join(f"w{w}" for w in rng.integers(0, 40, 7)), "label": i % 2} for i in range(24)]
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return path


def test_it_stands_in_the_files_of_select_train_evaluate_and_run(tmp_path, bert_directory, data):
    selection, trained, judged = tmp_path / "selection.json", tmp_path / "run", tmp_path / "judged.json"
    limit = ("--max-length", "6")
    steps = [
        (selection, ("select", bert_directory, "--data", data, *limit, "-o", selection)),
        (trained, ("train", bert_directory, "--data", data, "--selection", selection, *limit, "-o", trained)),
        (judged, ("evaluate", trained, "--data", data, "-o", judged)),
    ]
    said = {}
    for path, words in steps:
        result = layersift(*words)
        assert result.returncode == 0, result.stderr
        file = path if path.suffix else path / "layersift.json"
        said[words[0]] = json.loads(file.read_text())["data"]["left_out"]
        assert said[words[0]] in " ".join((result.stdout + result.stderr).split())
    assert said == {
        "select": "24 of 24 samples cut to 6 tokens; 1 rows that say what another says left out",
        "train": "25 of 25 samples cut to 6 tokens",
        "evaluate": "25 of 25 samples cut to 6 tokens",
    }
    recipe = tmp_path / "recipe.yaml"
    values = {
        "model": str(bert_directory),
        "data": {"data": str(data), "max_length": 6},
        "evaluate": str(data),
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
        "variants": ["all", "base"],
        "output": str(tmp_path / "grid"),
    }
    recipe.write_text(json.dumps(values))
    result = layersift("run", recipe)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "grid" / "results.json").read_text())
    both = ["training: 25 of 25 samples cut to 6 tokens", "test: 25 of 25 samples cut to 6 tokens"]
    read = "test: 25 of 25 rows read like rows trained on, so that the score is too good"
    assert found["notices"] == [*both, read]
    assert all(notice in (tmp_path / "grid" / "table.md").read_text() for notice in both)
