"""What goes to the Hub: a card that loads, results in its format, no path of this machine. Nothing is sent."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import EvalResultEntry, ModelCard

import layersift
from layersift.api import train
from layersift.config.train import TrainSettings
from layersift.export.publish import stage
from layersift.models.stacks import find_stack
from layersift.records.reading import DataRecord
from layersift.records.selection import make_selection
from tiny import selection_of, tiny

CLASSES = ["glad", "mad", "odd", "sad"]


@pytest.fixture(scope="module")
def run(bert_directory, tmp_path_factory):
    place = tmp_path_factory.mktemp("published")
    rows = [{"text": f"w{i} w{(i * 7) % 40}", "label": CLASSES[i % 4]} for i in range(24)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    selection = make_selection(bert_directory, "weights:0", find_stack(tiny("bert")), [1, 3], DataRecord(), "picked")
    train(bert_directory, str(place / "rows.jsonl"), selection, place / "run", TrainSettings(epochs=1))
    return place / "run"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that keeps what it is sent in a directory."""
    place = tmp_path / "hub"

    def create(self, repo, private, exist_ok):
        (place / repo).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo, __str__=lambda self: repo)

    def upload(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, place / repo_id, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, name, revision, token: str(place / repo / name)
    )
    return place


def code_of(card):
    (code,) = re.findall(r"## Use it\n\n```python\n(.*?)```", card, re.S)
    return code


def test_what_is_sent_has_no_path_of_this_machine_and_its_results(run, hub, tmp_path, call):
    data = run.parent / "rows.jsonl"
    assert call("evaluate", run, "--data", data, "-o", tmp_path / "e.json", cwd=tmp_path).returncode == 0
    words = ["push", run, "me/tickets", "--base-model", "org/bert", "--evaluation", tmp_path / "e.json"]
    (run / "held-back.jsonl").write_text("{}\n")  # as train --hold-back leaves it: somebody's rows
    result = call(*words, cwd=tmp_path)
    (run / "held-back.jsonl").unlink()
    assert result.returncode == 0, result.stderr
    sent = hub / "me" / "tickets"
    assert not list(sent.glob("held-back*"))
    texts = [file for file in sent.rglob("*") if file.suffix in (".json", ".md", ".yaml")]
    for file in texts:
        assert "/tmp" not in file.read_text(), file  # where all of this was made
    assert json.loads((sent / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/bert"
    card = ModelCard.load(sent / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("org/bert", "peft")
    assert card.data.pipeline_tag == "text-classification"
    assert "`□■□■`" in card.text
    found = json.loads((tmp_path / "e.json").read_text())
    assert f"accuracy {found['metrics']['accuracy']:.4f}" in card.text
    assert "24 rows, classification" in card.text
    record = layersift.RunRecord.load(sent)
    assert record.source.name == "org/bert"
    assert "More Information Needed" not in card.text


def test_the_cards_code_loads_the_adapters(run, tmp_path, monkeypatch):
    """Of a run here: with four classes, and with the labels' names."""
    monkeypatch.chdir(run)
    names = {}
    exec(code_of((run / "README.md").read_text()), names)
    model = names["model"].eval()
    assert list(model.config.id2label.values()) == CLASSES
    _, loaded, _ = layersift.load_run(run)
    inputs = names["reader"]("w1 w2 w3", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded.model(**inputs).logits)


def test_results_of_a_data_set_of_the_hub_are_in_its_format(run, hub, tmp_path):
    record = layersift.RunRecord.load(run)
    found = {"run": str(run), "trained_digest": record.trained_digest, "samples": 10}
    found |= {"metrics": {"accuracy": 0.5, "pearson": None}, "data": {"source": "org/tickets"}, "majority": None}
    (tmp_path / "e.json").write_text(json.dumps(found))
    layersift.push_to_hub(run, "me/x", base_model="org/bert", evaluations=[tmp_path / "e.json"])
    entries = yaml.safe_load((hub / "me" / "x" / ".eval_results" / "layersift.yaml").read_text())
    (entry,) = huggingface_hub.parse_eval_result_entries(entries)
    assert entry == EvalResultEntry("org/tickets", "accuracy", 0.5, notes="10 samples, layersift evaluate")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--base-model names it on the Hub"),
        (["--base-model", "org/bert", "--evaluation", "rows.jsonl"], "rows.jsonl"),
        (["--base-model", "org/bert", "--evaluation", "other.json"], "adapters are others"),
        (["--base-model", "org/bert", "--dry-run"], "--output"),
        (["--base-model", "org/bert", "-o", "new"], "--dry-run"),
    ],
)
def test_what_cannot_be_sent_is_refused(words, said, run, hub, tmp_path, call):
    (tmp_path / "rows.jsonl").write_text("{}\n{}\n")
    other = {"run": "elsewhere", "trained_digest": "0", "metrics": {}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    result = call("push", run, "me/tickets", *words, cwd=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr
    assert not hub.exists()


def test_a_hub_that_refuses_is_one_line(run, tmp_path, call):
    """HF_HUB_OFFLINE is set in all tests."""
    result = call("push", run, "me/tickets", "--base-model", "org/bert", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the Hub did not take 'me/tickets'")
    assert len(result.stderr.splitlines()) == 1


def test_a_selection_goes_there_and_comes_back(hub, tmp_path, monkeypatch):
    selection = selection_of(tiny("llama"), [1, 2])
    with pytest.raises(layersift.LayersiftError, match="base_model names it"):
        layersift.Selection.push_to_hub(
            make_selection(str(tmp_path), "weights:0", find_stack(tiny("llama")), [1], DataRecord(), "x"), "me/s"
        )
    selection.push_to_hub("me/choice", base_model="org/llama")
    back = layersift.Selection.from_pretrained("me/choice")
    assert (back.mask, back.importance, back.model) == (selection.mask, selection.importance, "org/llama")
    assert layersift.Selection.from_pretrained(hub / "me" / "choice") == back
    card = (hub / "me" / "choice" / "README.md").read_text()
    assert "layersift.Selection.from_pretrained('me/choice')" in card
    with pytest.raises(layersift.LayersiftError, match="no such file"):
        layersift.Selection.from_pretrained("me/none")


def cached(cache, directory, commit):
    """A model as the Hub's cache keeps it."""
    place = cache / "models--org--model"
    shutil.copytree(directory, place / "snapshots" / commit)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)


def called(cache, *words, cwd=None):
    """The command line, with the Hub's cache there."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-m", "layersift", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.slow
def test_what_was_trained_on_a_copy_is_judged_on_the_hubs(run, bert_directory, tmp_path):
    stage(run, tmp_path / "fetched", "me/it", "org/model", [])
    judged = ("evaluate", tmp_path / "fetched", "--data", run.parent / "rows.jsonl")
    cached(tmp_path / "same", bert_directory, "a" * 40)
    same = called(tmp_path / "same", *judged)
    assert same.returncode == 0, same.stderr
    assert "has not been recorded" not in same.stderr
    tiny("bert", seed=1).save_pretrained(tmp_path / "other-model")
    for file in Path(bert_directory).glob("token*"):
        shutil.copy(file, tmp_path / "other-model")
    cached(tmp_path / "other", tmp_path / "other-model", "b" * 40)
    other = called(tmp_path / "other", *judged)
    assert other.returncode == 2
    assert "'org/model' is bbbb" in other.stderr


@pytest.mark.slow
def test_a_base_that_changed_on_the_hub_is_noticed(bert_directory, tmp_path):
    rows = [{"text": f"w{i}", "label": CLASSES[i % 2]} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def called_here(*words):
        return called(tmp_path / "cache", *words, cwd=tmp_path)

    cached(tmp_path / "cache", bert_directory, "a" * 40)
    trained = called_here("train", "org/model", "--data", "rows.jsonl", "--ratio", "0.5", "--epochs", "1", "-o", "run")
    assert trained.returncode == 0, trained.stderr
    record = json.loads((tmp_path / "run" / "layersift.json").read_text())
    assert record["model_revision"] == "a" * 40
    assert called_here("evaluate", "run", "--data", "rows.jsonl").returncode == 0
    cached(tmp_path / "cache", bert_directory, "b" * 40)
    changed = called_here("evaluate", "run", "--data", "rows.jsonl")
    assert changed.returncode == 2
    assert f"'org/model' is {'b' * 40} now, but the adapters in run were trained on {'a' * 40}" in changed.stderr
    (tmp_path / "run" / "layersift.json").write_text(json.dumps(record | {"model_revision": "main"}))
    unknown = called_here("evaluate", "run", "--data", "rows.jsonl")
    assert unknown.returncode == 0, unknown.stderr
    assert "which commit of 'org/model' it was made with has not been recorded" in unknown.stderr
