"""Foreign code runs where this command line says so, and nowhere else."""

import json
import shutil

import pytest

from layersift.config.select import rule_file
from layersift.errors import ModelError
from layersift.evaluation.load_run import load_run
from training import classify, sentences

BRINGS_CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification
Path({marker!r}).write_text("ran")
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def place(tmp_path, bert_directory):
    """A run directory, and its base model, which since brings code that leaves a mark when it runs."""
    setting = classify(bert_directory)
    setting.train(tmp_path / "run")
    base = tmp_path / "base"
    shutil.copytree(bert_directory, base)
    config = json.loads((base / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"},
    }
    (base / "config.json").write_text(json.dumps(config))
    (base / "own.py").write_text(BRINGS_CODE.format(marker=str(tmp_path / "mark")))
    record = json.loads((tmp_path / "run" / "layersift.json").read_text())
    record["source"] |= {"name": str(base), "trust_remote_code": True}
    (tmp_path / "run" / "layersift.json").write_text(json.dumps(record))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sentences()))
    return tmp_path


def test_a_run_directory_that_allows_code_is_not_obeyed(place, call):
    for rest in ([], ["--dry-run"]):
        end = call("evaluate", "run", "--data", "rows.jsonl", *rest, cwd=place)
        assert not (place / "mark").exists()
    end = call("evaluate", "run", "--data", "rows.jsonl", cwd=place)
    assert end.returncode == 2
    assert "--trust-remote-code" in end.stderr
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        load_run(place / "run")
    assert not (place / "mark").exists()
    call("evaluate", "run", "--data", "rows.jsonl", "--trust-remote-code", cwd=place)
    assert (place / "mark").exists()  # the trap works


def recipe(place, **model):
    text = {"model": {"name": "base", **model}, "data": "rows.jsonl", "output": "out"}
    (place / "r.yaml").write_text(json.dumps(text))


@pytest.mark.parametrize("command", ["run", "compare", "oracle", "sweep"])
def test_a_recipe_that_allows_code_needs_the_command_line_to_say_so(place, call, command):
    recipe(place, trust_remote_code=True)
    for rest in ([], ["--dry-run"]) if command == "run" else ([],):
        end = call(command, "r.yaml", *rest, cwd=place)
        assert end.returncode == 2
        assert "r.yaml: model.trust_remote_code runs Python code" in end.stderr
        assert "--set model.trust_remote_code=true" in end.stderr
    assert not (place / "mark").exists()
    assert not (place / "out").exists()


def test_a_file_of_flags_that_allows_code_is_refused(place, call):
    (place / "c.yaml").write_text("trust-remote-code: true\n")
    end = call("select", "base", "--data", "rows.jsonl", "--config", "c.yaml", cwd=place)
    assert end.returncode == 2
    assert "c.yaml: trust_remote_code counts only on the command line" in end.stderr
    assert not (place / "mark").exists()


def test_rules_of_ones_own_are_told_and_not_run_in_a_dry_run(place, call, bert_directory):
    (place / "rules.py").write_text(
        f"open({str(place / 'mark')!r}, 'w')\ndef mine(context):\n    return [1, 2, 3, 4]\n"
    )
    (place / "r.yaml").write_text(
        json.dumps(
            {"model": bert_directory, "data": "rows.jsonl", "output": "out", "select": {"criterion": "rules.py:mine"}}
        )
    )
    (place / "c.yaml").write_text("criterion: rules.py:mine\n")
    commands = [
        ("run", "r.yaml"),
        ("select", bert_directory, "--data", "rows.jsonl", "--config", "c.yaml"),
    ]
    for command in commands:
        end = call(*command, "--dry-run", cwd=place)
        assert end.returncode == 0, end.stderr
        assert "rules.py:mine runs that file's Python code" in end.stderr
        assert not (place / "mark").exists()
    end = call(*commands[1], cwd=place)
    assert end.returncode == 0, end.stderr
    assert (place / "mark").exists()


def test_names_of_rules():
    assert str(rule_file("bottom:a/rules.py:mine")) == "a/rules.py"
    assert rule_file("cka@last") is None
