"""Training, saving, resuming, merging; then evaluation against independent computations."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sklearn import metrics

from layersift.adapt import store
from layersift.config.recipe import ModelSource
from layersift.config.train import TrainSettings
from layersift.data.encode import encode_rows
from layersift.data.examples import labelled_batch
from layersift.data.table import table_of
from layersift.errors import AdapterError, DataError, LayersiftError, ModelError, TrainingError
from layersift.evaluation.load_run import load_run, run_table
from layersift.evaluation.metrics import evaluate, exact_match
from layersift.models.load import load_model
from layersift.records.runs import RunRecord
from layersift.records.selection import Selection
from layersift.training import trainer
from layersift.training.output import RunOutput
from training import FAST, Setting, answers, classify, sentences


def test_a_run_directory_holds_everything(tmp_path, bert_directory):
    output = tmp_path / "run"
    setting = classify(bert_directory)
    before = {n: p.clone() for n, p in setting.loaded.model.state_dict().items()}
    record = setting.train(output)
    assert RunRecord.load(output) == record
    assert Selection.load(output / "selection.json") == setting.selection
    assert not RunOutput(output).partial.exists()
    assert record.mask == "0110"
    assert (record.steps, record.samples) == (12, 24)
    assert record.adapter_bytes == (output / "adapter_model.safetensors").stat().st_size
    weights = load_file(output / "adapter_model.safetensors")
    lora = [n for n in weights if "lora_" in n]
    assert {n.split(".layer.")[1].split(".")[0] for n in lora} == {"1", "2"}
    assert any(bool(weights[n].any()) for n in lora if "lora_B" in n)  # it moved
    trained = sum(w.numel() for w in weights.values())
    assert record.trainable_parameters == trained
    base = load_model(setting.source, "classification", 2).model
    after = base.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)  # the same head is drawn again
    found = evaluate(PeftModel.from_pretrained(base, str(output)).eval(), setting.encoder, setting.examples, 0)
    _, loaded, encoder = load_run(output)
    assert found == evaluate(loaded.model, encoder, setting.examples, 0)
    assert encoder.classes == ("0", "1")


def test_the_adapter_config_is_the_same_file_every_time(tmp_path, bert_directory):
    texts = []
    for name in ("a", "b"):
        classify(bert_directory).train(tmp_path / name, TrainSettings(epochs=0.2, target_modules="query,value,key"))
        texts.append((tmp_path / name / "adapter_config.json").read_text())
    assert texts[0] == texts[1]
    assert list(json.loads(texts[0])) == sorted(json.loads(texts[0]))


def test_the_same_seed_repeats_and_subsets_share_their_start(tmp_path, bert_directory):
    def weights(name, seed, layers):
        setting = classify(bert_directory)
        setting.table = None
        selection = replace(setting.selection, selected_layers=layers)
        setting.table = table_of(sentences(8), "rows")
        setting.train(tmp_path / name, replace(FAST, learning_rate=1e-9), seed=seed, selection=selection)
        return load_file(tmp_path / name / "adapter_model.safetensors")

    few, many, other = weights("few", 3, (1, 2)), weights("many", 3, (0, 1, 2, 3)), weights("other", 4, (1, 2))
    shared = [n for n in few if "lora_A" in n]
    assert shared
    for name in shared:
        torch.testing.assert_close(few[name], many[name], atol=1e-6, rtol=0)
        assert not torch.allclose(few[name], other[name], atol=1e-3)


@pytest.mark.parametrize(("method", "file"), [("lora", "adapter_model.safetensors"), ("full", "blocks.safetensors")])
def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path, bert_directory, method, file):
    settings = replace(FAST, method=method)

    class KilledError(Exception):
        pass

    done = []

    def kill(steps):
        done.append(steps)
        if sum(done) == 7:
            raise KilledError

    rows = sentences()
    output = tmp_path / "run"
    setting = classify(bert_directory)
    setting.examples = encode_rows(table_of(rows, "rows"), setting.encoder, range(len(rows))).examples
    whole = tmp_path / "again"
    uninterrupted = setting.train(whole, settings)
    setting.loaded = load_model(setting.source, "classification", 2)
    with pytest.raises(KilledError):
        setting.train(output, settings, progress=kill)
    assert not output.exists()
    setting.loaded = load_model(setting.source, "classification", 2)
    with pytest.raises(LayersiftError, match="unfinished training; add --resume"):
        setting.train(output, settings)
    with pytest.raises(LayersiftError, match="begun with other settings"):
        setting.train(output, replace(settings, epochs=3), resume=True)
    setting.loaded = load_model(setting.source, "classification", 2)
    clock = RunOutput(output).partial / "seconds.json"
    assert 0 < json.loads(clock.read_text())["seconds"] < 600
    clock.write_text('{"seconds": 1000.0}')
    cut_short = RunOutput(output).partial / "checkpoints" / "checkpoint-99"  # by a kill while it was written
    cut_short.mkdir()
    (cut_short / "adapter_config.json").write_text("{")
    steps = []
    record = setting.train(output, settings, resume=True, progress=steps.append)
    assert 1000 < record.train_seconds < 1600
    assert not (output / clock.name).exists()
    assert sum(steps) == 12
    assert len(steps) < 12
    assert record.train_loss == pytest.approx(uninterrupted.train_loss, rel=1e-5)  # of all steps, not of those since
    expected, found = (load_file(d / file) for d in (whole, output))
    # Kept states come from other batches than in one go: Adam makes that rounding as large as a key bias's gradient.
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def test_a_checkpoint_that_lacks_weights_is_not_gone_on_from(tmp_path, bert_directory):
    settings, output = replace(FAST, method="full"), tmp_path / "run"

    def kill(steps):
        if next(RunOutput(output).partial.glob("checkpoints/checkpoint-*/trainer_state.json"), None):
            raise KeyboardInterrupt

    setting = classify(bert_directory)
    with pytest.raises(KeyboardInterrupt):
        setting.train(output, settings, progress=kill)
    for path in RunOutput(output).partial.glob("checkpoints/checkpoint-*/model.safetensors"):
        weights = load_file(path)
        del weights["bert.encoder.layer.1.output.dense.weight"]
        save_file(weights, path, metadata={"format": "pt"})
    setting.loaded = load_model(setting.source, "classification", 2)
    with pytest.raises(TrainingError, match=r"lacks 1 of the model's weights, bert\.encoder\.layer\.1\.output\.dense"):
        setting.train(output, settings, resume=True)


def test_layers_that_were_chosen_on_another_model_are_told(tmp_path, bert_directory, caplog):
    setting = classify(bert_directory)
    own = replace(setting.selection, model_revision=setting.loaded.revision)
    setting.train(tmp_path / "own", replace(FAST, epochs=0.2), selection=own)
    assert "were chosen on" not in caplog.text
    other = replace(own, model="bert-other", model_revision="weights:0")
    setting = classify(bert_directory)
    setting.train(tmp_path / "other", replace(FAST, epochs=0.2), selection=other)
    assert f"the layers were chosen on bert-other (weights:0) and are trained on {bert_directory}" in caplog.text


def on_its_device(setting, examples):
    """A batch of a classification where the model is."""
    batch = labelled_batch(examples, 0, "classification")
    return {name: value.to(setting.loaded.model.device) for name, value in batch.items()}


def test_merged_weights_give_the_adapters_outputs(tmp_path, bert_directory):
    setting = classify(bert_directory)
    setting.train(tmp_path / "run", merge=True)
    _, loaded, _ = load_run(tmp_path / "run")
    merged = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "merged").eval()
    batch = labelled_batch(setting.examples[:5], 0, "classification")
    torch.testing.assert_close(merged(**batch).logits, loaded.model.cpu()(**batch).logits, atol=1e-5, rtol=1e-4)


def test_loss_is_taken_on_the_response_alone(llama_directory):
    setting = Setting(llama_directory, "instruction", answers())
    batch = labelled_batch(setting.examples[:3], 0, "instruction")
    words = setting.loaded.tokenizer.convert_ids_to_tokens(batch["labels"][2][batch["labels"][2] >= 0])
    assert words == ["w2", "#", "#", "#", "#", "2", "<|end|>"]
    found = evaluate(setting.loaded.model, setting.encoder, setting.examples, 0)
    total = count = 0.0
    for example in setting.examples:  # one at a time, from the model's own log-probabilities
        with torch.no_grad(), setting.loaded.model.device:
            logp = setting.loaded.model(torch.tensor([example.input_ids])).logits[0].double().log_softmax(-1)
        at = [i for i, counted in enumerate(example.response) if counted]
        total -= sum(float(logp[i - 1, example.input_ids[i]]) for i in at)
        count += len(at)
    assert found.metrics["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_training_lowers_the_loss_of_a_decoder(tmp_path, llama_directory):
    setting = Setting(llama_directory, "instruction", answers())
    before = evaluate(setting.loaded.model, setting.encoder, setting.examples, 0).metrics["loss"]
    setting.train(tmp_path / "run", replace(FAST, target_modules="all-linear", epochs=4))
    _, loaded, encoder = load_run(tmp_path / "run")
    assert evaluate(loaded.model, encoder, setting.examples, 0).metrics["loss"] < before - 0.3


def test_classification_metrics_are_scikit_learns(bert_directory):
    rows = [{**row, "label": f"c{i % 3}"} for i, row in enumerate(sentences())]
    setting = Setting(bert_directory, "classification", rows, ("c0", "c1", "c2"))
    found = evaluate(setting.loaded.model, setting.encoder, setting.examples, 0)
    truth = [e.label for e in setting.examples]
    with torch.no_grad():
        guessed = [int(setting.loaded.model(**on_its_device(setting, [e])).logits.argmax()) for e in setting.examples]
    assert found.metrics["accuracy"] == pytest.approx(np.mean(np.array(truth) == guessed))
    assert found.metrics["f1"] == pytest.approx(metrics.f1_score(truth, guessed, average="macro"))
    assert found.outcomes == tuple(float(a == b) for a, b in zip(truth, guessed, strict=True))
    assert found.standard_error == pytest.approx(np.std(found.outcomes, ddof=1) / np.sqrt(24))


def test_other_methods_train_on_the_same_layers(tmp_path, bert_directory):
    for method, options in (("adalora", {}), ("ia3", {"feedforward_modules": []}), ("pissa", {})):
        setting = classify(bert_directory)
        settings = replace(FAST, method=method, method_options=options, target_modules="query,value")
        record = setting.train(tmp_path / method, settings)
        weights = load_file(tmp_path / method / "adapter_model.safetensors")
        assert {n.split(".layer.")[1][0] for n in weights if ".layer." in n} == {"1", "2"}
        assert record.settings.method == method
        _, loaded, encoder = load_run(tmp_path / method)
        assert evaluate(loaded.model, encoder, setting.examples, 0).metrics["accuracy"] is not None


def test_blocks_themselves_are_trained_saved_merged_and_resumed(tmp_path, bert_directory):
    setting = classify(bert_directory)
    full = replace(FAST, method="full", learning_rate=1e-3)
    record = setting.train(tmp_path / "run", full, merge=True)
    before = load_model(setting.source, "classification", 2).model.cpu().state_dict()
    weights = load_file(tmp_path / "run" / "blocks.safetensors")
    inside = {n for n in before if ".layer.1." in n or ".layer.2." in n}
    assert set(weights) == inside | {"classifier.weight", "classifier.bias"}
    assert not any(torch.equal(weights[n], before[n]) for n in inside if n.endswith("query.weight"))
    assert record.trainable_parameters == sum(w.numel() for w in weights.values())
    assert record.adapter_bytes == (tmp_path / "run" / "blocks.safetensors").stat().st_size
    _, loaded, _ = load_run(tmp_path / "run")
    merged = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "merged").eval()
    batch = labelled_batch(setting.examples[:5], 0, "classification")
    torch.testing.assert_close(merged(**batch).logits, loaded.model(**batch).logits, atol=1e-6, rtol=1e-5)
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, weights.get(name, before[name]), atol=0, rtol=0)
    with pytest.raises(LayersiftError, match="neither ranks nor options"):
        replace(full, ranks={"mlp": 4})


def test_trained_blocks_of_another_model_are_refused(tmp_path, bert_directory, llama_directory):
    setting = classify(bert_directory)
    setting.train(tmp_path / "run", replace(FAST, method="full", epochs=0.2))
    other = load_model(ModelSource(llama_directory), "instruction")
    with pytest.raises(AdapterError, match="which the model does not have"):
        store.load(other.model, "full", tmp_path / "run")


def test_eva_starts_from_the_principal_directions_of_what_enters_the_selected_layers(tmp_path, bert_directory):
    setting = classify(bert_directory)
    settings = replace(FAST, method="eva", rank=4, target_modules="query", learning_rate=1e-12)
    seen = []
    query = setting.loaded.model.get_submodule("bert.encoder.layer.1.attention.self.query")
    query.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().double().cpu()))
    with torch.no_grad():  # the first 8 batches of 4, as the training shows them to it
        for i in range(0, len(setting.examples), 4):
            setting.loaded.model(**on_its_device(setting, setting.examples[i : i + 4]))
    rows = torch.cat([batch.reshape(-1, 32) for batch in seen])
    setting.loaded = load_model(setting.source, "classification", 2)
    setting.train(tmp_path / "run", settings)
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {n.split(".layer.")[1][0] for n in weights if ".layer." in n} == {"1", "2"}
    found = weights["base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.weight"].double()
    expected = torch.linalg.svd(rows, full_matrices=False).Vh[:4]
    overlap = torch.linalg.svdvals(found @ expected.T)  # cosines of the angles between the two spans
    assert float(overlap[:2].min()) > 0.95  # of random spans the largest is about 0.6; padding is in ours


def test_regression_trains_and_correlates(tmp_path, bert_directory):
    rows = [{"text": row["text"], "score": row["label"] + 0.5} for row in sentences()]
    setting = Setting(bert_directory, "regression", rows)
    setting.train(tmp_path / "run", replace(FAST, epochs=25))
    _, loaded, encoder = load_run(tmp_path / "run")
    found = evaluate(loaded.model, encoder, setting.examples, 0)
    assert set(found.metrics) == {"pearson", "spearman"}
    assert found.metrics["pearson"] > 0.2


def test_one_row_of_a_regression_has_no_correlation(bert_directory):
    setting = Setting(bert_directory, "regression", [{"text": "a b", "score": i + 0.5} for i in range(8)])
    found = evaluate(setting.loaded.model, setting.encoder, setting.examples[:1], 0)
    assert found.metrics == {"pearson": None, "spearman": None}


def test_undefined_correlation_is_none(bert_directory):
    rows = [{"text": "a b", "score": i + 0.5} for i in range(8)]
    setting = Setting(bert_directory, "regression", rows)
    with pytest.warns(Warning, match="constant"):
        found = evaluate(setting.loaded.model, setting.encoder, setting.examples, 0)
    assert found.metrics["pearson"] is None


def test_exact_match_reads_the_generated_answer(llama_directory, monkeypatch):
    rows = [{"prompt": f"w{i}", "response": f"it is {i} #### {i + 10}"} for i in range(20)]
    setting = Setting(llama_directory, "instruction", rows)
    order = {i: setting.loaded.tokenizer.convert_tokens_to_ids(f"w{i}") for i in range(20)}

    def echo(input_ids, attention_mask, **settings):
        assert setting.loaded.model.generation_config.do_sample is False
        assert bool((attention_mask[:, -1] == 1).all())  # padded on the left
        numbers = [next(i for i, token in order.items() if token in row) for row in input_ids.tolist()]
        new = [setting.loaded.tokenizer.convert_tokens_to_ids(list(f"{n + 10 if n < 5 else 0:02d}")) for n in numbers]
        return torch.cat([input_ids, torch.tensor(new, device=input_ids.device)], dim=1)

    monkeypatch.setattr(setting.loaded.model, "generate", echo)
    monkeypatch.setattr(
        setting.loaded.tokenizer,
        "batch_decode",
        lambda ids, skip_special_tokens: ["".join(setting.loaded.tokenizer.convert_ids_to_tokens(row)) for row in ids],
    )
    found = exact_match(setting.loaded.model, setting.encoder, setting.table, range(20), 0)
    assert found.metrics == {"exact_match": 0.25}
    assert found.outcomes == (1.0,) * 5 + (0.0,) * 15
    no_number = table_of([{"prompt": "a", "response": "b"}], "rows")
    with pytest.raises(DataError, match="row 1: exact match needs a number or an expression"):
        exact_match(setting.loaded.model, setting.encoder, no_number, [0], 0)


def test_what_cannot_be_trained(tmp_path, bert_directory):
    setting = Setting(bert_directory, "text", [{"text": "a b"} for _ in range(8)])
    with pytest.raises(ModelError, match="does not write text"):
        setting.train(tmp_path / "run")
    setting = classify(bert_directory)
    with pytest.raises(AdapterError, match="match nothing in layer 1, 2"):
        setting.train(tmp_path / "run", replace(FAST, target_modules="q_proj"))
    (tmp_path / "taken").mkdir()
    with pytest.raises(LayersiftError, match="taken exists; train overwrites nothing"):
        setting.train(tmp_path / "taken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs 0 is out of range"),
        ({"rank": -1}, "rank -1 is out of range"),
        ({"dropout": 1.0}, "dropout"),
        ({"learning_rate": -1.0}, "learning-rate"),
        ({"warmup_ratio": 1.0}, "warmup-ratio"),
        ({"scheduler": "sine"}, "unknown scheduler 'sine'.*Known: .*linear"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(LayersiftError, match=message):
        TrainSettings(**settings)


def test_a_base_model_that_changed_is_refused(tmp_path, bert_directory):
    classify(bert_directory).train(tmp_path / "run", TrainSettings(epochs=0.2))
    path = tmp_path / "run" / "layersift.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "model_revision": "sha256:other"}))
    with pytest.raises(ModelError, match="were trained on sha256:other"):
        load_run(tmp_path / "run")
    record = RunRecord.load(tmp_path / "run")
    (tmp_path / "t.jsonl").write_text('{"words": "a", "label": 0}\n')
    with pytest.raises(DataError, match="no column 'text'"):
        run_table(record, str(tmp_path / "t.jsonl"), "test")
    with pytest.raises(LayersiftError, match="no such directory; expected the output of `layersift train`"):
        RunRecord.load(tmp_path / "none")


@pytest.mark.parametrize(("device", "installed"), [("cpu", True), ("cuda", True), ("cuda", False)])
def test_ligers_kernels_are_for_gpus_that_have_them_and_leave_the_loss_alone(device, installed, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_liger_kernel_available", lambda: installed)
    found = trainer._kernels(torch.device(device))
    assert found.get("use_liger_kernel", False) == (device == "cuda" and installed)
    assert not any(found.get("liger_kernel_config", {}).values())
