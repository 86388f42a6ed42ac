"""Ranks by kind of module, by name and by layer; parameters by layer."""

import re

import pytest
import torch
from peft import IA3Config, LoraConfig

from layersift.adapt.methods import make_config, with_ranks
from layersift.adapt.targets import trained_by_layer
from layersift.errors import AdapterError
from layersift.models.stacks import find_stacks
from methods_table import NAMES, config
from tiny import CLASSES, CONFIGS, attach, selection_of, tiny

ATTENTION = {  # last parts of the names of what belongs to attention, by architecture; the rest is not
    "bert": ("query", "key", "value", "attention.output.dense"),
    "deberta-v2": ("query_proj", "key_proj", "value_proj", "attention.output.dense"),
    "gpt2": ("c_attn", "attn.c_proj"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "gemma": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "t5": (".q", ".k", ".v", ".o"),
    "gpt-neox": ("query_key_value", "attention.dense"),
}


def ranks_of(model):
    """By module's name: rank and scaling of its LoRA, read from the weights."""
    return {
        name.removeprefix("base_model.model."): (module.lora_A["default"].weight.shape[0], module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_against_the_rest(name):
    model = tiny(name)
    selection = selection_of(model, [1, 2], "decoder" if name == "t5" else None)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    found = ranks_of(
        attach(
            model,
            selection,
            with_ranks(model, selection.stack(model), selection.selected_layers, lora, {"attention": 4, "mlp": 6}),
        )
    )
    assert {rank for rank, _ in found.values()} == {4, 6}
    for module, (rank, scaling) in found.items():
        assert (rank == 4) == module.endswith(ATTENTION[name]), module
        assert scaling == 2


@pytest.mark.parametrize("by_root", [False, True])
def test_other_ranks_scale_updates_as_the_config_does(by_root):
    model = tiny("llama")
    selection = selection_of(model, [1, 2])
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", use_rslora=by_root)
    asked = attach(tiny("llama"), selection, lora)
    config = with_ranks(model, selection.stack(model), selection.selected_layers, lora, {"attention": 2, "mlp": 12})
    ranked = ranks_of(attach(model, selection, config))
    assert {rank for rank, _ in ranked.values()} == {2, 12}
    (scale,) = {scale for _, scale in ranks_of(asked).values()}
    assert scale == pytest.approx(16 / (8**0.5 if by_root else 8))
    assert [scale for _, scale in ranked.values()] == pytest.approx([scale] * len(ranked))


def test_by_name_and_layer_the_last_fitting_counts():
    model = tiny("llama")
    selection = selection_of(model, [1, 3])
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    ranks = {"attention": 2, "v_proj": 3, "3": 5, "model.layers.1.mlp.down_proj": 7}
    found = ranks_of(
        attach(model, selection, with_ranks(model, selection.stack(model), selection.selected_layers, lora, ranks))
    )
    assert {name: rank for name, (rank, _) in found.items()} == {
        "model.layers.1.self_attn.q_proj": 2,
        "model.layers.1.self_attn.v_proj": 3,
        "model.layers.1.mlp.down_proj": 7,
        "model.layers.3.self_attn.q_proj": 5,
        "model.layers.3.self_attn.v_proj": 5,
        "model.layers.3.mlp.down_proj": 5,
    }
    assert lora.rank_pattern == {}  # the caller's config is left as it was


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"q_porj": 4}, "'q_porj' fits none of the adapted modules"),
        ({"0": 4}, "'0' fits none of the adapted modules"),
        ({"q_proj": 0}, "rank of 'q_proj' is 0; a whole number from 1"),
        ({"q_proj": "four"}, "rank of 'q_proj' is 'four'"),
    ],
)
def test_ranks_that_cannot_be_had(ranks, message):
    model = tiny("llama")
    with pytest.raises(AdapterError, match=re.escape(message)):
        with_ranks(model, find_stacks(model)[0], [1, 3], LoraConfig(target_modules=["q_proj"]), ranks)


def test_methods_without_ranks_by_module():
    model = tiny("llama")
    with pytest.raises(AdapterError, match="IA3Config has one rank for all modules"):
        with_ranks(model, find_stacks(model)[0], [1], IA3Config(), {"q_proj": 2})


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"full", "loftq", "eva"}))
def test_parameters_by_layer_are_what_attaching_makes_trainable(name):
    with torch.device("meta"):
        empty = CLASSES["llama"](CONFIGS["llama"]())
    model = tiny("llama")
    selection = selection_of(model, [1, 3])
    by_layer = trained_by_layer(empty, selection.stack(empty), [1, 3], config(name))
    if by_layer is None:
        assert name in {"adamss", "frod", "shira"}  # they start from weights
        return
    adapted = attach(model, selection, config(name))
    expected = [
        sum(
            p.numel()
            for n, p in adapted.named_parameters()
            if p.requires_grad and f".layers.{i}." in n and "ranknum" not in n
        )
        for i in (1, 3)
    ]
    assert by_layer == expected
    assert sum(by_layer) > 0 or name in {"unilora", "vblora"}


def test_parameters_of_whole_blocks():
    model = tiny("llama")
    stack = selection_of(model, [1]).stack(model)
    block = sum(p.numel() for p in model.model.layers[1].parameters())
    assert trained_by_layer(model, stack, [0, 2], None) == [block, block]


def test_parameters_by_layer_of_experts():
    with torch.device("meta"):
        empty = CLASSES["qwen3-moe"](CONFIGS["qwen3-moe"]())
    model = tiny("qwen3-moe")
    selection = selection_of(model, [1, 3])
    lora = make_config(
        "lora",
        rank=2,
        alpha=4,
        dropout=0.0,
        target_modules=["q_proj"],
        task_type="CAUSAL_LM",
        options={"target_parameters": ["experts.gate_up_proj"]},
    )
    found = trained_by_layer(empty, selection.stack(empty), [1, 3], lora)
    adapted = attach(model, selection, lora)
    expected = [
        sum(p.numel() for n, p in adapted.named_parameters() if p.requires_grad and f".layers.{i}." in n)
        for i in (1, 3)
    ]
    assert found == expected
