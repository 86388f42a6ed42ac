"""Blocks that are trained themselves, counts of what a layer would train, and which methods have a rank."""

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from layersift.adapt import attach as attach_module
from layersift.adapt.attach import peft_config
from layersift.adapt.methods import has_rank
from layersift.adapt.store import head_parameters, load_blocks, save_blocks, unfreeze_blocks
from layersift.adapt.targets import adapted_modules, layer_costs
from layersift.errors import AdapterError
from layersift.models.stacks import find_stack
from tiny import tiny


@pytest.mark.parametrize("with_head", [True, False])
def test_the_blocks_that_are_trained_are_saved_and_put_into_a_fresh_model(with_head, tmp_path):
    model = tiny("bert")
    unfreeze_blocks(model, find_stack(model), [1, 3], with_head)
    wanted = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("bert.encoder.layer.1.", "bert.encoder.layer.3."))
        or (with_head and name.startswith("classifier."))
    }
    assert {name for name, p in model.named_parameters() if p.requires_grad} == wanted
    assert set(head_parameters(model)) == {"classifier.weight", "classifier.bias"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1  # what is frozen, too
    path = save_blocks(model, tmp_path)
    assert load_file(path).keys() == wanted
    fresh = load_blocks(tiny("bert"), tmp_path)
    for name, parameter in fresh.named_parameters():
        moved = torch.equal(parameter, model.get_parameter(name))
        assert moved == (name in wanted)
    with pytest.raises(AdapterError, match=r"blocks\.safetensors holds .*, which the model does not have"):
        load_blocks(tiny("llama"), tmp_path)


def test_a_layer_costs_what_its_adapters_have_numbers():
    """r x (in + out) of each map; of whole blocks, all that they have."""
    model = tiny("llama")
    stack = find_stack(model)
    one = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    assert layer_costs(model, stack, one) == [3 * (32 + 32) + 3 * (48 + 32)] * 4
    block = model.model.layers[0]
    assert layer_costs(model, stack, None) == [sum(p.numel() for p in block.parameters())] * 4
    assert not any(p.is_meta for p in model.parameters())
    names = [f"model.layers.{layer}.{leaf}" for layer in (0, 2) for leaf in ("mlp.down_proj", "self_attn.q_proj")]
    assert list(adapted_modules(model, stack, [0, 2], one)) == names
    assert adapted_modules(model, stack, [2, 0], None) == ("model.layers.2", "model.layers.0")


def test_what_begins_from_the_weights_cannot_be_counted_without_them(monkeypatch):
    def begins(*given, **named):
        raise NotImplementedError

    model = tiny("llama")
    monkeypatch.setattr("layersift.adapt.targets.adapt_without_weights", begins)
    with pytest.raises(AdapterError, match="LoraConfig: what it trains depends on the weights"):
        layer_costs(model, find_stack(model), LoraConfig(target_modules=["q_proj"]))


def test_a_config_for_some_layers_is_pefts_own_for_just_their_modules():
    model = tiny("llama")
    given = LoraConfig(r=5, target_modules=["q_proj", "v_proj"], layers_to_transform=None)
    found = peft_config(model, find_stack(model), [1, 2], given)
    assert found.r == 5
    assert given.target_modules == {"q_proj", "v_proj"}
    attached = attach_module.attach(tiny("llama"), find_stack(model), [1, 2], given)
    assert attached.peft_config["default"].target_modules == found.target_modules
    assert sorted(attached.base_model.targeted_module_names) == [
        f"model.layers.{layer}.self_attn.{leaf}" for layer in (1, 2) for leaf in ("q_proj", "v_proj")
    ]


@pytest.mark.parametrize(
    ("cuda", "xpu", "installed", "refused"),
    [
        (False, False, True, True),
        (True, False, False, True),
        (False, True, False, True),
        (True, False, True, False),
        (False, True, True, False),
    ],
)
def test_loftq_needs_an_accelerator_and_bitsandbytes(cuda, xpu, installed, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: xpu)
    monkeypatch.setattr(
        attach_module.importlib.util, "find_spec", {"bitsandbytes": object() if installed else None}.__getitem__
    )
    if refused:
        with pytest.raises(AdapterError, match="needs a CUDA or XPU device and bitsandbytes"):
            attach_module._require_loftq()
    else:
        attach_module._require_loftq()


@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "eva", "adalora", "loha", "lokr"])
def test_a_rank_can_be_traded_where_parameters_are_in_proportion_to_one(name):
    assert has_rank(name) is True


@pytest.mark.parametrize("name", ["full", "ia3", "vera", "oft", "vblora", "ln_tuning"])
def test_no_rank_can_be_traded_where_there_is_none_or_it_is_something_else(name):
    assert has_rank(name) is False
