"""Names that end like another: a target, a rank or a head means the module of that name, and none that ends so."""

import re

import pytest
import torch
from peft import IA3Config, LoraConfig
from torch import nn

from layersift.adapt.attach import attach
from layersift.adapt.methods import is_attention, with_ranks
from layersift.adapt.store import head_parameters, unfreeze_blocks
from layersift.adapt.targets import (
    Targets,
    adapted_modules,
    anchored_regex,
    resolve_targets,
    stack_named,
    trained_by_layer,
)
from layersift.errors import AdapterError, SelectionError
from layersift.models.stacks import find_stack, find_stacks, join
from tiny import tiny


class Mixer(nn.Module):
    """A block in which every name ends like another: q and kq, proj and out_proj, attn.proj and crossattn.proj."""

    def __init__(self, width=8):
        super().__init__()
        self.q, self.kq = nn.Linear(width, width), nn.Linear(width, width)
        self.attn, self.crossattn = (nn.ModuleDict({"proj": nn.Linear(width, width)}) for _ in range(2))
        self.proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return self.out_proj(self.proj(self.kq(self.q(x))))


class AttentionOnly(Mixer):
    """A block that is called after attention, which says nothing of what is in it."""


class Mixers(nn.Module):
    """Twelve blocks, so that 1 begins 10 and 11, and a list whose path ends like the blocks' own."""

    base_model_prefix = "body"

    def __init__(self, block=Mixer):
        super().__init__()
        self.body = nn.Module()
        self.body.h = nn.ModuleList(block() for _ in range(12))
        self.bodyguard = nn.Linear(8, 2)

    def forward(self, x):
        for block in self.body.h:
            x = block(x)
        return self.bodyguard(x)


NAMES = {
    "q": ["q"],
    "kq": ["kq"],
    "proj": ["attn.proj", "crossattn.proj", "proj"],
    "out_proj": ["out_proj"],
    "attn.proj": ["attn.proj"],
    "body.h.1.proj": ["proj"],
}


@pytest.mark.parametrize("wanted", NAMES)
def test_a_target_is_a_whole_name_or_an_end_of_whole_names(wanted):
    model = Mixers()
    found, _ = resolve_targets(model, find_stack(model), [1], LoraConfig(target_modules=[wanted]))
    assert found.modules == tuple(f"body.h.1.{name}" for name in NAMES[wanted])
    assert found.leaves(1) == tuple(NAMES[wanted])
    adapted = attach(model, find_stack(model), [1], LoraConfig(r=2, target_modules=[wanted]))
    assert set(adapted.base_model.targeted_module_names) == set(found.modules)


def test_a_target_that_no_name_ends_in_whole_is_refused():
    model = Mixers()
    with pytest.raises(AdapterError, match="match nothing in layer 1"):
        resolve_targets(model, find_stack(model), [1], LoraConfig(target_modules=["roj"]))
    with pytest.raises(AdapterError, match="target module 'roj' matches nothing in the selected layers"):
        resolve_targets(model, find_stack(model), [1], LoraConfig(target_modules=["q", "roj"]))


def test_what_is_excluded_is_meant_in_the_same_way():
    model = Mixers()
    config = LoraConfig(target_modules="all-linear", exclude_modules=["q", "proj"])
    found, _ = resolve_targets(model, find_stack(model), [1], config)
    assert found.leaves(1) == ("kq", "out_proj")


def test_layer_1_is_not_layer_11():
    model = Mixers()
    found, _ = resolve_targets(model, find_stack(model), [1, 3], LoraConfig(target_modules="all-linear"))
    assert {name.split(".")[2] for name in found.modules} == {"1", "3"}
    assert len(found.modules) == 12
    assert all(name.startswith("body.h.1.") for name in found.modules[:6])
    assert Targets(found.stack, (1,), found.modules, ()).leaves(11) == ()
    assert trained_by_layer(model, find_stack(model), [1, 11], LoraConfig(r=2, target_modules=["q"])) == [32, 32]


@pytest.mark.parametrize("key", NAMES)
def test_a_rank_is_for_a_whole_name_or_an_end_of_whole_names(key):
    model = Mixers()
    stack = find_stack(model)
    config = with_ranks(model, stack, [1, 2], LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), {key: 3})
    adapted = attach(model, stack, [1, 2], config)
    layers = (1,) if key.startswith("body") else (1, 2)
    other = {
        name.removeprefix("base_model.model.")
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A") and module.lora_A["default"].weight.shape[0] == 3
    }
    assert other == {f"body.h.{i}.{name}" for i in layers for name in NAMES[key]}
    with pytest.raises(AdapterError, match="'roj' fits none"):
        with_ranks(Mixers(), stack, [1], LoraConfig(target_modules="all-linear"), {"roj": 3})


def test_a_rank_of_layer_1_is_not_one_of_layer_11_and_alpha_over_rank_stays():
    model = Mixers()
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q"])
    ranked = with_ranks(model, find_stack(model), [1, 11], config, {11: 12, "1": 4})
    adapted = attach(model, find_stack(model), [1, 11], ranked)
    found = {
        name.split(".")[4]: (module.lora_A["default"].weight.shape[0], module.scaling["default"])
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    assert found == {"1": (4, 2.0), "11": (12, 2.0)}


@pytest.mark.parametrize("rank", [0, -1, True, 2.0, "4", None])
def test_a_rank_is_a_whole_number_from_one(rank):
    model = Mixers()
    with pytest.raises(AdapterError, match="a whole number from 1 is needed"):
        with_ranks(model, find_stack(model), [1], LoraConfig(target_modules=["q"]), {"q": rank})
    assert with_ranks(model, find_stack(model), [1], LoraConfig(target_modules=["q"]), {"q": 1}).rank_pattern


@pytest.mark.parametrize("block", [Mixer, AttentionOnly])
def test_attention_is_what_is_called_so_below_the_block(block):
    model = Mixers(block)
    found, _ = resolve_targets(model, find_stack(model), [1], LoraConfig(target_modules="all-linear"))
    attention = {name for name in found.leaves(1) if is_attention(f"body.h.1.{name}", found, model)}
    assert attention == {"attn.proj", "crossattn.proj"}
    # A model that is called so itself is not all attention.
    outer = nn.Module()
    outer.attention = model
    around, _ = resolve_targets(outer, find_stack(outer), [1], LoraConfig(target_modules="all-linear"))
    assert {n for n in around.modules if is_attention(n, around, outer)} == {
        "attention.body.h.1.attn.proj",
        "attention.body.h.1.crossattn.proj",
    }


def test_feedforward_modules_are_meant_in_the_same_way():
    model = Mixers()
    config = IA3Config(target_modules=["kq", "out_proj", "proj"], feedforward_modules=["proj"])
    adapted = attach(model, find_stack(model), [1, 2], config)
    found = {n for n, m in adapted.base_model.model.named_modules() if getattr(m, "is_feedforward", False)}
    assert found == {f"body.h.{i}.{name}" for i in (1, 2) for name in ("attn.proj", "crossattn.proj", "proj")}


def test_a_head_is_what_is_not_below_the_backbones_name():
    model = Mixers()
    assert list(head_parameters(model)) == ["bodyguard.weight", "bodyguard.bias"]
    for with_head in (True, False):
        unfreeze_blocks(model, find_stack(model), [1], with_head)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert {n for n in trained if n.startswith("body.")} == {
            n for n, _ in model.named_parameters() if n.startswith("body.h.1.")
        }
        assert ("bodyguard.weight" in trained) == with_head


def test_where_the_blocks_themselves_are_trained_they_are_what_is_adapted():
    model = Mixers()
    assert adapted_modules(model, find_stack(model), [1, 11], None) == ("body.h.1", "body.h.11")
    block = sum(p.numel() for p in model.body.h[1].parameters())
    assert trained_by_layer(model, find_stack(model), [1], None) == [block]


# A regex of names


def test_a_regex_matches_its_names_and_nothing_else():
    model = Mixers()
    stack = find_stack(model)
    names = [f"body.h.{i}.{leaf}" for i, leaf in ((1, "q"), (1, "attn.proj"), (10, "q"), (10, "attn.proj"), (2, "kq"))]
    pattern = anchored_regex(names, stack, [1, 2, 10])
    everything = [name for name, _ in model.named_modules()] + ["body.h.1.attn_proj", "bodyxh.1.q", "x.body.h.1.q"]
    assert sorted(n for n in everything if re.fullmatch(pattern, n)) == sorted(names)
    assert pattern.count("|body") == 1  # one alternative a set of leaves
    both = tiny("t5")
    stacks = join(find_stacks(both))
    found, _ = resolve_targets(both, stacks, [0, 2, 4], LoraConfig(target_modules=["q", "v"]))
    pattern = anchored_regex(found.modules, stacks, [0, 2, 4])
    assert sorted(n for n, _ in both.named_modules() if re.fullmatch(pattern, n)) == sorted(found.modules)
    assert {n.split(".")[0] + n.split(".")[2] for n in found.modules} == {"encoder0", "encoder2", "decoder1"}


# A stack by its pattern


def test_a_stack_is_found_by_its_path_its_end_or_its_tower():
    model = tiny("llama")
    for pattern, tower in (
        ("model.layers.{}", "encoder"),
        ("layers.{}", "encoder"),
        ("language_model.model.layers.{}", "language"),
        ("elsewhere.h.{}", "decoder"),
    ):
        assert stack_named(model, pattern, tower, 4, "it").path == "model.layers"
    for pattern, tower, layers in (
        ("ayers.{}", "encoder", 4),  # an end, but not of a whole name
        ("model.layers.{}", "decoder", 5),
        ("model.layers.{}", "decoder+encoder", 4),
    ):
        with pytest.raises(SelectionError):
            stack_named(model, pattern, tower, layers, "it")


def test_of_several_stacks_the_path_counts_before_its_end_and_that_before_the_tower():
    model = tiny("t5")
    assert stack_named(model, "encoder.block.{}", "decoder", 3, "it").path == "encoder.block"
    both = tiny("llava")  # two lists called layers, of three and of four
    for layers, tower in ((3, "vision"), (4, "language")):
        assert stack_named(both, "layers.{}", "encoder", layers, "it").tower == tower


def test_two_towers_are_found_by_two_patterns_and_their_layers_add_up():
    model = tiny("t5")
    found = stack_named(model, "encoder.block.{}+decoder.block.{}", "encoder+decoder", 7, "it")
    assert [part.path for part in found.parts] == ["encoder.block", "decoder.block"]
    turned = stack_named(model, "decoder.block.{}+encoder.block.{}", "decoder+encoder", 7, "it")
    assert [turned.block_path(i) for i in (0, 3, 4, 6)] == [
        "decoder.block.0",
        "decoder.block.3",
        "encoder.block.0",
        "encoder.block.2",
    ]
    with pytest.raises(SelectionError, match=r"decoder, 6 layers\) of it"):
        stack_named(model, "encoder.block.{}+decoder.block.{}", "encoder+decoder", 6, "it")


def test_the_same_seed_starts_a_module_alike_and_another_differently():
    def start(layers, seed):
        torch.manual_seed(len(layers) + seed)
        model = attach(Mixers(), find_stack(Mixers()), layers, LoraConfig(r=2, target_modules=["q", "kq"]), seed=seed)
        return {n: p for n, p in model.named_parameters() if "lora_A" in n}

    one, more, other = start([1], 0), start([0, 1, 11], 0), start([1], 1)
    assert all(torch.equal(one[n], more[n]) for n in one)
    assert not any(torch.equal(one[n], other[n]) for n in one)
    values = list(more.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[i + 1 :])


@pytest.mark.parametrize(
    ("pattern", "tower", "told"),
    [
        ("model.layers.{}", "decoder", None),
        ("layers.{}", "decoder", None),  # a head takes the prefix away
        ("base.model.layers.{}", "decoder", None),
        ("transformer.h.{}", "decoder", "names blocks transformer.h.{} (decoder); taken for model.layers.{} (decoder)"),
        ("model.layers.{}", "encoder", "names blocks model.layers.{} (encoder); taken for model.layers.{} (decoder)"),
    ],
)
def test_blocks_of_another_name_or_tower_are_told(pattern, tower, told, caplog):
    assert stack_named(tiny("llama"), pattern, tower, 4, "it").path == "model.layers"
    assert told in caplog.text if told else not caplog.text
