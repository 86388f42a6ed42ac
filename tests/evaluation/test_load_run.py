"""A run is evaluated with exactly what was trained, on exactly the model it was trained on, or not at all."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from layersift.errors import AdapterError, LayersiftError
from layersift.evaluation.load_run import load_run
from layersift.records.runs import RunRecord
from training import FAST, classify

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def run(tmp_path, bert_directory):
    classify(bert_directory).train(tmp_path / "run", replace(FAST, epochs=0.2))
    return tmp_path / "run"


def rewrite(path, change):
    weights = load_file(path)
    save_file(change(weights), path, metadata={"format": "pt"})


def without_digest(run):
    """As a record of schema 1 has it."""
    record = json.loads((run / "layersift.json").read_text())
    record["trained_digest"] = None
    (run / "layersift.json").write_text(json.dumps(record))


def first_lora(weights):
    return next(name for name in weights if "lora_B" in name)


CHANGES = {
    "all renamed": lambda w: {f"x.{name}": value for name, value in w.items()},
    "one renamed": lambda w: {("x" if name == first_lora(w) else "") + name: value for name, value in w.items()},
    "one left out": lambda w: {name: value for name, value in w.items() if name != first_lora(w)},
    "one more": lambda w: {**w, "base_model.model.more.lora_A.weight": torch.zeros(2, 2)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_weights_of_other_names_are_refused(run, name):
    rewrite(run / WEIGHTS, CHANGES[name])
    with pytest.raises(LayersiftError, match=r"adapter_model\.safetensors is not what was trained"):
        load_run(run)
    without_digest(run)
    with pytest.raises(AdapterError, match="are not those of this model"):
        load_run(run)


def test_other_values_are_refused(run):
    rewrite(run / WEIGHTS, lambda w: {name: value + (name == first_lora(w)) for name, value in w.items()})
    with pytest.raises(LayersiftError, match="is not what was trained: it has changed since"):
        load_run(run)


def test_another_scale_is_refused(run):
    config = json.loads((run / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (run / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(LayersiftError, match="is not what was trained"):
        load_run(run)


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
def test_what_is_not_there_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(AdapterError, match=f"{name}: no such file"):
        load_run(run)


def test_what_was_trained_is_loaded_whole(run):
    _, loaded, _ = load_run(run)
    saved = load_file(run / WEIGHTS)
    inside = {n.replace(".default", "").replace(".modules_to_save", ""): p for n, p in loaded.model.named_parameters()}
    assert all(torch.equal(inside[name], value) for name, value in saved.items())
    assert len(RunRecord.load(run).trained_digest) == 64


def test_blocks_that_were_trained_are_checked_alike(tmp_path, bert_directory):
    classify(bert_directory).train(tmp_path / "run", replace(FAST, method="full", epochs=0.2, learning_rate=1e-3))
    load_run(tmp_path / "run")
    rewrite(tmp_path / "run" / "blocks.safetensors", lambda w: {n: v * 1.5 for n, v in w.items()})
    with pytest.raises(LayersiftError, match=r"blocks\.safetensors is not what was trained"):
        load_run(tmp_path / "run")


def test_another_base_is_refused(tmp_path, bert_directory):

    shutil.copytree(bert_directory, tmp_path / "base")
    classify(str(tmp_path / "base")).train(tmp_path / "run", replace(FAST, epochs=0.2))
    weights = tmp_path / "base" / "model.safetensors"
    before = load_file(weights)
    key = next(name for name in before if name.endswith("layer.1.output.dense.weight"))
    save_file({**before, key: before[key] + 1e-3}, weights, metadata={"format": "pt"})
    with pytest.raises(LayersiftError, match=r"the adapters in .* were trained on"):
        load_run(tmp_path / "run")
