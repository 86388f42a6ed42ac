"""Real 4-bit and 8-bit bases on this CPU: selected by every kind of criterion, trained, judged, and what is refused."""

import json

import pytest
import torch
import transformers as tf
from torch import nn

from layersift import select_layers

pytest.importorskip("bitsandbytes")

from layersift.api import train
from layersift.config.recipe import DataSettings, ModelSource
from layersift.config.train import TrainSettings
from layersift.errors import AdapterError, LayersiftError, ModelError
from layersift.evaluation.load_run import load_run
from layersift.models.load import base_bytes, load_model
from layersift.models.stacks import find_stack
from layersift.score.weights import weight_of
from tiny import SIZE, selection_of, tiny
from words import tokenizer

ROWS = [{"prompt": f"w{i} w{i + 2}", "completion": f"w{i % 7} w3"} for i in range(24)]


def source(directory, quantization):
    return ModelSource(str(directory), quantization=quantization)


def unpacked(loaded):
    """The same model with ordinary weights, the quantised ones unpacked by bitsandbytes itself."""
    import bitsandbytes as bnb

    plain = tiny("llama")
    state = {}
    for name, module in loaded.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state[f"{name}.weight"] = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    plain.load_state_dict({**tiny("llama").state_dict(), **state})
    assert state
    return plain


@pytest.mark.parametrize("criterion", ["cka", "fisher", "gradient-norm", "spectrum", "snr", "taylor", "lora-drop"])
def test_a_4_bit_base_scores_as_its_unpacked_weights_do(llama_directory, criterion):
    loaded = load_model(source(llama_directory, "4bit"), "instruction")
    given = {"criterion": criterion, "max_samples": 24}
    wanted = select_layers(unpacked(loaded), ROWS, tokenizer("decoder", chat=True), **given)
    found = select_layers(loaded.model, ROWS, tokenizer("decoder", chat=True), **given)
    assert found.importance == pytest.approx(wanted.importance, rel=2e-3, abs=1e-6)
    assert found.mask == wanted.mask


def test_scoring_leaves_4_bit_weights_as_they_were_and_gradients_pass_through_them(llama_directory):
    """bitsandbytes packs them anew in evaluation mode where it finds AVX512-BF16, and then hands no gradient on."""
    model = load_model(source(llama_directory, "4bit"), "instruction").model
    packed = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    for module in packed:
        module.support_avx512bf16_for_cpu = True  # as on such a processor
    before = [m.weight.data.clone() for m in packed]
    select_layers(model, ROWS, tokenizer("decoder", chat=True), criterion="cka", max_samples=24)
    assert packed
    for module, was in zip(packed, before, strict=True):
        assert torch.equal(module.weight.data, was)
        assert module.support_avx512bf16_for_cpu
        assert not getattr(module.weight.quant_state, "packing_format_for_cpu", False)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_bytes_of_the_base_are_those_that_it_has(llama_directory, quantization):
    loaded = load_model(source(llama_directory, quantization), "instruction").model
    found = 0
    for parameter in loaded.parameters():
        found += parameter.numel() * parameter.element_size()
        if (state := getattr(parameter, "quant_state", None)) is not None:
            found += state.absmax.numel() * state.absmax.element_size()
        if (scales := getattr(parameter, "SCB", None)) is not None:
            found += scales.numel() * scales.element_size()
    with torch.device("meta"):
        empty = tiny("llama")
    assert base_bytes(empty, quantization) == pytest.approx(found, rel=0.01)
    assert base_bytes(empty, None) == 4 * sum(p.numel() for p in empty.parameters())


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_the_whole_way_by_the_command_line(llama_directory, tmp_path, call, quantization):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    common = (llama_directory, "--data", "rows.jsonl", "--quantization", quantization)
    done = call("select", *common, "--criterion", "fisher", "-o", "s.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = call("train", *common, "--selection", "s.json", "-o", "run", "--epochs", 2, "--rank", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "layersift.json").read_text())
    assert record["source"]["quantization"] == quantization
    _, loaded, _ = load_run(tmp_path / "run")
    kinds = {type(m).__name__ for m in loaded.model.modules()}
    assert {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[quantization] in kinds
    done = call("evaluate", "run", "--data", "rows.jsonl", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = call("inspect", llama_directory, "--plan", "--quantization", quantization, cwd=tmp_path)
    assert f"MiB ({quantization})" in done.stdout, done.stderr


def test_what_cannot_be_done_with_a_quantised_base_is_refused(llama_directory, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    selection = selection_of(tiny("llama"), [2, 3])
    with pytest.raises(AdapterError, match="would round what was trained; leave --merge away"):
        train(
            source(llama_directory, "4bit"),
            DataSettings(str(tmp_path / "rows.jsonl")),
            selection,
            tmp_path / "run",
            TrainSettings(epochs=1),
            merge=True,
        )
    assert not (tmp_path / "run").exists()
    with pytest.raises(LayersiftError, match="unknown quantization '3bit'"):
        source(llama_directory, "3bit")


def test_weights_that_cannot_be_unpacked_are_not_read_as_numbers():
    packed = nn.Linear(8, 8)
    packed.weight = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match=r"packed as torch\.uint8 in a way that PEFT cannot unpack"):
        weight_of(packed)


class Buffered(nn.Module):
    """As GPTQ's and AWQ's linear layers: packed weights are buffers, and there is no parameter at all."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", linear.weight.detach())

    def forward(self, x):
        return x @ self.qweight.T


def test_blocks_are_found_from_modules(llama_directory):
    wanted = select_layers(tiny("llama"), ROWS, tokenizer("decoder", chat=True), max_samples=24)
    model = tiny("llama")
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Buffered(child))
    found = select_layers(model, ROWS, tokenizer("decoder", chat=True), max_samples=24)
    assert found.importance == pytest.approx(wanted.importance, rel=1e-5)
    sharded = tiny("llama")
    for parameter in sharded.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)  # as ZeRO-3 leaves them between uses
    assert find_stack(sharded).num_layers == 4


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("kind", [tf.BertModel, tf.BertForMaskedLM, tf.RobertaForMaskedLM, tf.DebertaV2Model])
def test_classifiers_of_encoders_train_on_a_quantised_base(kind, quantization, tmp_path):
    """transformers takes a new classifier, or pooler, for one more matrix to pack; nothing packed can be trained."""
    torch.manual_seed(0)
    own = {"pad_token_id": 1} if kind is tf.RobertaForMaskedLM else {}
    model = kind(kind.config_class(**SIZE, **own))
    model.save_pretrained(tmp_path / "model")
    tokenizer("encoder").save_pretrained(tmp_path / "model")
    rows = [{"text": f"w{i} w{i + 2}", "label": "xyz"[i % 3]} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record = train(
        source(tmp_path / "model", quantization),
        DataSettings(str(tmp_path / "rows.jsonl")),
        selection_of(model, [2, 3]),
        tmp_path / "run",
        TrainSettings(epochs=1, rank=2),
    )
    assert record.train_loss > 0
    _, loaded, _ = load_run(tmp_path / "run")
    packed = {n for n, m in loaded.model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")}
    assert len(packed) >= 4 * 6
    assert not [n for n in packed if "classifier" in n or "pooler" in n]
