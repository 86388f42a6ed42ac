"""The last line of each command says what to do next, by a command that can be carried out."""

import json
import shlex

import pytest
import yaml

from cli import layersift
from layersift.commands.console import next_step
from layersift.commands.flags import words_of
from layersift.config.recipe import DataSettings, ModelSource


def next_of(done):
    """The words of the command on the last line."""
    assert done.returncode == 0, done.stderr
    purpose, colon, command = done.stdout.splitlines()[-1].partition(": ")
    assert colon
    assert purpose.startswith("To ")
    return shlex.split(command)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("next step") / "my rows.jsonl"
    rows = [{"said": f"w{i % 7} w{i % 11}", "label": "yes" if i % 2 else "no"} for i in range(24)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def run(bert_directory, data, tmp_path_factory):
    """A run in a directory with a blank in its name, and what its training printed."""
    place = tmp_path_factory.mktemp("trained") / "my run"
    words = ["--data", data, "--text-column", "said", "--batch-size", "8", "--epochs", "1"]
    return place, layersift("train", bert_directory, *words, "-o", place)


def test_the_form():
    assert next_step("judge it", "layersift", "evaluate", "a run", "--data", "FILE") == (
        "To judge it: layersift evaluate 'a run' --data FILE"
    )


def test_settings_are_given_again_where_they_are_not_by_default():
    model = ModelSource("a/b", revision="main", quantization="4bit")
    data = DataSettings("rows.jsonl", text_column="said", max_length=64)
    assert words_of(model, data) == [
        "a/b", "--revision", "main", "--quantization", "4bit",
        "--data", "rows.jsonl", "--text-column", "said", "--max-length", "64",
    ]  # fmt: skip


def test_a_run_is_judged_then_predicts(run, data, tmp_path):
    place, trained = run
    words = next_of(trained)
    assert words == ["layersift", "evaluate", str(place), "--data", "FILE"]
    judged = layersift(*[str(data) if word == "FILE" else word for word in words[1:]])
    words = next_of(judged)
    assert words[:3] == ["layersift", "predict", str(place)]
    predicted = layersift(*[str(data) if word == "FILE" else word for word in words[1:]], cwd=tmp_path)
    words = next_of(predicted)
    assert words[:3] == ["layersift", "evaluate", str(place)]
    # On the screen predictions stand alone under their header, as JSON does.
    alone = layersift("predict", place, "--data", data)
    assert len(alone.stdout.splitlines()) == 25
    assert isinstance(json.loads(layersift("evaluate", place, "--data", data, "--json").stdout), dict)
    assert layersift("evaluate", place, "--data", data, "--quiet").stdout == ""


def test_a_selection_is_trained_on_with_the_same_columns(bert_directory, data, tmp_path):
    given = [bert_directory, "--data", data, "--text-column", "said"]
    for more in ([], ["-o", tmp_path / "chosen layers.json"]):
        words = next_of(layersift("select", *given, *more))
        assert words[:2] == ["layersift", "train"]
        planned = layersift(*words[1:], "--epochs", "1", "--dry-run", cwd=tmp_path)
        again = next_of(planned)
        assert again == [*words, "--epochs", "1"]
    words = next_of(layersift("inspect", *given))
    assert words[:2] == ["layersift", "advise"]
    assert words[2:] == [str(word) for word in given]


def test_a_recipe_is_run_then_its_best_variant_is_judged(bert_directory, data, tmp_path):
    values = {
        "model": {"name": bert_directory},
        "data": {"data": str(data), "text_column": "said"},
        "train": {"epochs": 1, "batch_size": 8},
        "variants": ["all", "base"],
        "output": "found here",
    }
    (tmp_path / "a recipe.yaml").write_text(yaml.safe_dump(values))
    words = next_of(layersift("run", "a recipe.yaml", "--dry-run", cwd=tmp_path))
    assert words == ["layersift", "run", "a recipe.yaml"]
    words = next_of(layersift(*words[1:], cwd=tmp_path))
    assert words[:3] == ["layersift", "evaluate", "found here/variants/all"]
    assert layersift(*[str(data) if word == "FILE" else word for word in words[1:]], cwd=tmp_path).returncode == 0


def test_an_export_and_a_pruned_run_go_on(run, bert_directory, tmp_path):
    place, _ = run
    given = ["export", "--layers", "2,3", "--model", bert_directory, "--to", "axolotl"]
    words = next_of(layersift(*given, "-o", tmp_path / "layers.yaml"))
    assert words[:2] == ["layersift", "export"]
    assert words[2:8] == [*given[1:5], *given[5:7]]
    small = tmp_path / "small one"
    words = next_of(layersift("prune", place, "--params", "500", "-o", small))
    assert words == ["layersift", "evaluate", str(small), "--data", "FILE"]
