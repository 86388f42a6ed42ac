"""What is not a number is neither trained on, nor written, nor judged, nor ranked: it is refused with its place."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import layersift
from layersift.config.recipe import ModelSource
from layersift.errors import ModelError, TrainingError
from layersift.evaluation.metrics import evaluate
from layersift.models.load import load_model
from tiny import selection_of
from training import FAST, Setting, answers, classify, sentences


def overflows_at_call(model, number):
    """From that forward pass on, the token embeddings hold an infinite number, as where float16 overflows."""
    calls = []

    def infinite(module, given, output):
        calls.append(1)
        return output * float("inf") if len(calls) == number and module.training else output

    model.get_input_embeddings().register_forward_hook(infinite)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_first_loss_that_is_no_number_ends_the_training(tmp_path, bert_directory, method):
    setting = classify(bert_directory)
    overflows_at_call(setting.loaded.model, 5)
    with pytest.raises(
        TrainingError,
        match=r"diverged at step 5 of 12: its loss is nan, at a learning rate of 0\.00\d+; try a lower",
    ):
        setting.train(tmp_path / "run", replace(FAST, method=method, activation_cache="off"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", [3, 4])
def test_a_decoder_diverges_as_loudly_in_any_of_the_accumulated_batches(tmp_path, llama_directory, at):
    setting = Setting(llama_directory, "instruction", answers())
    overflows_at_call(setting.loaded.model, at)
    with pytest.raises(TrainingError, match="diverged at step 2 of 4"):
        setting.train(tmp_path / "run", replace(FAST, gradient_accumulation=2, activation_cache="off"))
    assert list(tmp_path.iterdir()) == []


def test_a_gradient_that_is_no_number_ends_it_before_the_weights_follow(tmp_path, bert_directory):
    setting = classify(bert_directory)
    weight = setting.loaded.model.get_submodule("bert.encoder.layer.1.attention.self.key").weight
    seen = []

    def infinite(gradient):
        seen.append(1)
        return gradient / 0.0 if len(seen) == 3 else gradient

    weight.requires_grad_(True).register_hook(infinite)
    with pytest.raises(TrainingError, match="diverged at step 3 of 12: its gradient is not finite"):
        setting.train(tmp_path / "run", replace(FAST, method="full"))
    kept = setting.loaded.model.state_dict()
    assert all(bool(torch.isfinite(value).all()) for value in kept.values())


def test_weights_that_the_last_step_spoils_are_not_written(tmp_path, bert_directory):
    setting = classify(bert_directory)

    def spoil(steps):
        done.append(steps)
        if sum(done) == 12:
            name, parameter = next((n, p) for n, p in setting.loaded.model.named_parameters() if "lora_B" in n)
            assert parameter.requires_grad, name
            parameter.data.fill_(float("nan"))

    done = []
    with pytest.raises(TrainingError, match=r"ended with weights that are not finite \(.*lora_B"):
        setting.train(tmp_path / "run", progress=spoil)
    assert list(tmp_path.iterdir()) == []


def test_the_reported_loss_is_the_trained_one(tmp_path, bert_directory):
    setting = classify(bert_directory)
    record = setting.train(tmp_path / "run", replace(FAST, learning_rate=1e-12))  # the weights stay
    found = evaluate_loss(setting)
    assert math.isfinite(record.train_loss)
    assert record.train_loss == pytest.approx(found, rel=0.2)  # dropout is on in training


def evaluate_loss(setting):
    loaded = load_model(setting.source, "classification", 2)
    total = 0.0
    for example in setting.examples:
        with torch.no_grad(), loaded.model.device:
            logits = loaded.model(torch.tensor([example.input_ids])).logits[0]
        total -= float(logits.log_softmax(0)[example.label])
    return total / len(setting.examples)


def spoiled(directory, to, tensor="bert.encoder.layer.2.output.dense.bias"):
    """A copy of a saved model with one number that is none."""
    shutil.copytree(directory, to)
    weights = load_file(to / "model.safetensors")
    key = next(name for name in weights if name.endswith(tensor.removeprefix("bert.")))
    weights[key][0] = float("nan")
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return key


def test_a_model_with_such_a_weight_is_refused_by_its_name(tmp_path, bert_directory, call):
    key = spoiled(bert_directory, tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sentences(40)))
    selection_of(load_model(ModelSource(bert_directory), "classification", 2).model, [1, 2]).save(tmp_path / "s.json")
    for given in (["select"], ["select", "--stream"], ["train", "--selection", "s.json"]):
        end = call(given[0], "model", *given[1:], "--data", "rows.jsonl", "-o", "out", cwd=tmp_path)
        assert end.returncode == 2, end.stdout
        line = end.stderr.strip().splitlines()[-1]
        assert key.removeprefix("bert.") in line, line
        assert "NaN or infinity" in line
        assert not (tmp_path / "out").exists()


def test_a_model_spoiled_in_memory_is_not_ranked(bert_directory):
    setting = classify(bert_directory)
    with torch.no_grad():
        setting.loaded.model.bert.encoder.layer[2].output.dense.bias[3] = float("inf")
    model, tokenizer = setting.loaded.model, setting.loaded.tokenizer
    with pytest.raises(ModelError, match=r"weights bert\.encoder\.layer\.2\.output\.dense\.bias hold NaN or infinity"):
        layersift.select_layers(model, sentences(), tokenizer)


@pytest.mark.parametrize("kind", ["classification", "instruction"])
def test_outputs_that_are_no_numbers_are_not_judged(kind, bert_directory, llama_directory):
    setting = classify(bert_directory) if kind == "classification" else Setting(llama_directory, kind, answers())
    embedding = setting.loaded.model.get_input_embeddings()
    token = setting.examples[5].input_ids[1]
    first = next(i for i, e in enumerate(setting.examples) if token in e.input_ids) + 1
    with torch.no_grad():
        embedding.weight[token] = float("nan")
    with pytest.raises(ModelError, match=f"on test sample {first} is not finite"):
        evaluate(setting.loaded.model, setting.encoder, setting.examples, 0)
