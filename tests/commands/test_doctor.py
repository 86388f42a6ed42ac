"""`layersift doctor` tells a run that works from one that does not, by its files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import Linear
from transformers import AutoTokenizer

from cli import layersift
from layersift.evaluation import findings

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def run(bert_directory, tmp_path_factory):
    place = tmp_path_factory.mktemp("doctor")
    rows = [{"text": f"w{i % 7} w{i % 11}", "label": "yes" if i % 2 else "no"} for i in range(40)]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--data", place / "rows.jsonl", "--batch-size", "8", "--epochs", "2", "--layers", "1,3"]
    done = layersift("train", bert_directory, *words, "-o", place / "run")
    assert done.returncode == 0, done.stderr
    return place / "run"


@pytest.fixture
def copy(run, tmp_path):
    """An adapter of PEFT's, without what layersift wrote beside it."""
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "layersift.json").unlink()
    return tmp_path / "copy"


def faults_of(place):
    """Of the faults what they are about, with all that was said."""
    done = layersift("doctor", place, "--json")
    assert done.stderr == ""
    said = json.loads(done.stdout)["findings"]
    faults = {one["subject"]: one for one in said if one["level"] == "fault"}
    assert done.returncode == bool(faults)
    assert all(one["remedy"] for one in faults.values())
    return faults, {one["subject"]: one["says"] for one in said}


def change(place, changed):
    tensors = load_file(place / WEIGHTS)
    save_file({name: changed(name, value) for name, value in tensors.items()}, place / WEIGHTS)


def reconfigure(place, **values):
    config = json.loads((place / CONFIG).read_text())
    (place / CONFIG).write_text(json.dumps(config | values))


@pytest.mark.parametrize(("most", "level"), [(2, "ok"), (12, "note")])
def test_it_says_how_much_of_the_batches_was_padding(most, level, bert_directory, tmp_path):
    rows = [
        {"text": " ".join(["w1"] * (most if i % 4 == 0 else 1)), "label": "yes" if i % 2 else "no"} for i in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--data", tmp_path / "rows.jsonl", "--batch-size", "24", "--epochs", "1"]
    done = layersift("train", bert_directory, *words, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(bert_directory)
    lengths = [len(tokenizer(row["text"])["input_ids"]) for row in rows]
    padding = 1 - sum(lengths) / (24 * max(lengths))  # one batch
    record = json.loads((tmp_path / "run" / "layersift.json").read_text())
    assert record["padding"] == pytest.approx(padding, abs=1e-4)
    said = json.loads(layersift("doctor", tmp_path / "run", "--json").stdout)["findings"]
    (one,) = [one for one in said if one["subject"] == "padding"]
    assert (one["level"], one["says"]) == (level, f"{padding:.0%} of each batch")


def test_of_a_healthy_run_it_finds_no_fault_and_says_what_is_next(run):
    done = layersift("doctor", run)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 adapted: query, value of layers 1, 3" in done.stdout
    assert "all 4 lora_B left zero" in done.stdout
    assert "has every adapted module" in done.stdout
    assert "float32" in done.stdout
    assert done.stdout.splitlines()[-2] == "0 faults"
    assert done.stdout.splitlines()[-1] == f"To judge it on other rows: layersift evaluate {run} --data FILE"
    assert layersift("doctor", run, "--quiet").stdout == ""


def test_of_a_healthy_adapter_and_model_neither(copy, bert_directory):
    assert faults_of(copy)[0] == {}
    faults, says = faults_of(bert_directory)
    assert faults == {}
    assert "4 (encoder)" in says["layers"]


def test_an_adapter_that_changes_nothing(copy):
    change(copy, lambda name, value: torch.zeros_like(value) if "lora_B" in name else value)
    faults, _ = faults_of(copy)
    assert set(faults) == {"trained"}
    assert "changes nothing" in faults["trained"]["says"]


def test_one_module_that_was_not_trained_is_named(copy):
    one = "encoder.layer.3.attention.self.value.lora_B"
    change(copy, lambda name, value: torch.zeros_like(value) if one in name else value)
    faults, _ = faults_of(copy)
    assert one in faults["trained"]["says"]
    assert "1 of 4" in faults["trained"]["says"]


def test_numbers_that_are_none(copy):
    change(copy, lambda name, value: value * float("nan") if "layer.1." in name and "lora_A" in name else value)
    faults, _ = faults_of(copy)
    assert set(faults) == {"numbers"}
    assert "2 of " in faults["numbers"]["says"]


def test_weights_of_another_model(copy):
    tensors = load_file(copy / WEIGHTS)
    save_file({name.replace(".layer.", ".block."): value for name, value in tensors.items()}, copy / WEIGHTS)
    reconfigure(copy, target_modules=["query", "value"])
    faults, _ = faults_of(copy)
    assert set(faults) == {"base model"}
    assert "lacks 4 of 4" in faults["base model"]["says"]


def test_targets_and_layers_that_no_weight_belongs_to(copy):
    reconfigure(copy, target_modules=["query", "value", "q_proj"], layers_to_transform=[1, 3, 4])
    faults, _ = faults_of(copy)
    assert set(faults) == {"targets", "layers"}
    assert "'q_proj'" in faults["targets"]["says"]
    assert "[4]" in faults["layers"]["says"]
    reconfigure(copy, target_modules=r".*\.(q|k)_proj", layers_to_transform=None)
    assert set(faults_of(copy)[0]) == {"targets"}


def test_no_adapter_at_all(copy):
    save_file({"base_model.model.classifier.weight": torch.ones(2, 2)}, copy / WEIGHTS)
    faults, _ = faults_of(copy)
    assert set(faults) == {"modules"}


def test_a_run_whose_weights_were_changed_or_whose_loss_broke(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    change(tmp_path / "run", lambda name, value: value * 2)
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 99, "loss": NaN}\n')
    faults, _ = faults_of(tmp_path / "run")
    assert set(faults) == {"files", "loss"}


@pytest.mark.parametrize("falls", [True, False])
def test_a_loss_that_did_not_fall_is_a_fault(run, tmp_path, falls):
    shutil.copytree(run, tmp_path / "run")
    losses = [2 - step / 40 if falls else 2 + step % 3 for step in range(40)]
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, 1)]
    (tmp_path / "run" / "log.jsonl").write_text("\n".join(lines) + "\n")
    faults, says = faults_of(tmp_path / "run")
    assert set(faults) == (set() if falls else {"loss"})
    assert "first quarter" in says["loss"]


def test_a_run_cannot_have_its_models_code_run(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "layersift.json").read_text())
    record["source"]["trust_remote_code"] = True
    (tmp_path / "run" / "layersift.json").write_text(json.dumps(record))
    trusted = []
    monkeypatch.setattr(
        findings, "empty_model", lambda source, *_: trusted.append(source.trust_remote_code) or Linear(1, 1)
    )
    monkeypatch.setattr(findings, "load_config", lambda source: trusted.append(source.trust_remote_code))
    findings.find(tmp_path / "run")
    assert trusted == [False, False]


def test_a_base_model_that_cannot_be_read_is_a_note(copy, tmp_path):
    (tmp_path / "base").mkdir()
    reconfigure(copy, base_model_name_or_path=str(tmp_path / "base"))
    faults, says = faults_of(copy)
    assert faults == {}
    assert "no config.json" in says["base model"]


def test_what_is_none_of_the_three_and_files_that_cannot_be_read(copy, tmp_path):
    (tmp_path / "empty").mkdir()
    for place, named in ((tmp_path / "nowhere", "no such directory"), (tmp_path / "empty", "config.json")):
        done = layersift("doctor", place)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert named in done.stderr
    (copy / WEIGHTS).write_bytes(b"cut short")
    done = layersift("doctor", copy)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert WEIGHTS in done.stderr
    (copy / WEIGHTS).unlink()
    assert "save the adapter as safetensors" in layersift("doctor", copy).stderr
