"""Rates of LoRA+ and by layer, read off what the first steps of a real training move."""

import math
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from layersift.adapt.methods import adapter_config
from layersift.config.defaults import Trained, default_rate
from layersift.config.train import TrainSettings
from layersift.errors import AdapterError
from training import FAST, classify, interrupted_at

RATE, RATIO, DECAY = 1e-3, 8.0, 0.5
# Adam's first step moves a weight by its rate. Where the first gradient is zero and the second is not, the second step
# moves it by this much of the rate (betas of 0.9 and 0.999).
SECOND = (0.1 / (1 - 0.9**2)) / math.sqrt(0.001 / (1 - 0.999**2))


@pytest.fixture(scope="module")
def first_steps(tmp_path_factory, request):
    """The largest move of each matrix: of B in the first step, of A in the second; by layer."""
    setting = classify(request.getfixturevalue("bert_directory"))

    def moves(**options):
        weights = []
        for steps in (1, 2):
            place = tmp_path_factory.mktemp("steps") / "run"
            own = classify(setting.source.name)
            settings = TrainSettings(
                epochs=steps / 2, learning_rate=RATE, batch_size=12, scheduler="constant", dropout=0.0, **options
            )
            record = own.train(place, settings)
            assert record.steps == steps
            weights.append(load_file(place / "adapter_model.safetensors"))
        first, second = weights
        found = {}
        for name in first:
            layer = next((i for i in (1, 2) if f"layer.{i}." in name), None)
            if layer is not None:
                start, end = (0.0, first[name]) if "lora_B" in name else (first[name], second[name])
                key = ("lora_B" if "lora_B" in name else "lora_A", layer)
                found[key] = max(found.get(key, 0.0), float((end - start).abs().max()))
        return found

    return moves


@pytest.mark.parametrize("ratio", [None, RATIO])
@pytest.mark.parametrize("decay", [None, DECAY])
def test_each_matrix_moves_at_its_own_rate(ratio, decay, first_steps):
    moved = first_steps(loraplus_ratio=ratio, layer_decay=decay)
    for (matrix, layer), most in moved.items():
        above = 3 - layer  # the model has four layers, and two carry adapters
        rate = RATE * (decay or 1.0) ** above
        expected = rate * (ratio or 1.0) if matrix == "lora_B" else rate * SECOND
        assert most == pytest.approx(expected, rel=2e-2), (matrix, layer)


def test_rates_are_the_same_after_a_resume(bert_directory, tmp_path, monkeypatch):
    settings = replace(FAST, loraplus_ratio=RATIO, layer_decay=DECAY)
    classify(bert_directory).train(tmp_path / "whole", settings)
    with interrupted_at(monkeypatch, 5), pytest.raises(KeyboardInterrupt):
        classify(bert_directory).train(tmp_path / "cut", settings)
    classify(bert_directory).train(tmp_path / "cut", settings, resume=True)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all((one[name] - other[name]).abs().max() < 1e-6 for name in one)


def test_blocks_themselves_have_rates_by_layer(bert_directory, tmp_path):
    settings = replace(FAST, method="full", layer_decay=DECAY, epochs=0.1)
    assert classify(bert_directory).train(tmp_path / "run", settings).settings.layer_decay == DECAY


@pytest.mark.parametrize("method", ["full", "ia3", "adalora"])
def test_only_lora_has_a_matrix_b(method):
    with pytest.raises(AdapterError, match="loraplus-ratio"):
        adapter_config(TrainSettings(method=method, loraplus_ratio=2.0), "classification", 10)


def test_the_rule_names_the_mean_of_both_rates():
    trained = Trained("classification", 384, 6, 6)
    plain = default_rate(TrainSettings(), trained)
    assert default_rate(TrainSettings(loraplus_ratio=16.0), trained) == pytest.approx(plain / 4, rel=0.05)
