"""What settings make of an adapter, which layers lack a target, and how EVA is told what padding is."""

import copy
import importlib.util
import warnings

import peft
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig

from layersift.adapt.attach import _real_tokens, _start_from_data, attach
from layersift.adapt.methods import VARIANTS, adapter_config
from layersift.adapt.store import adapt
from layersift.adapt.targets import _wanted_modules, resolve_targets, without_weights
from layersift.compat import converted_config
from layersift.config.train import TrainSettings
from layersift.errors import AdapterError
from layersift.models.stacks import find_stack
from tiny import tiny
from tiny_types import tiny_model

# Newer versions of PEFT turn targets within experts that are one tensor into parameters of it.
REWRITES = importlib.util.find_spec("peft.utils.transformers_weight_conversion") is not None


def test_adalora_is_told_how_many_steps_there_are_unless_the_options_say_it():
    settings = TrainSettings(method="adalora", method_options={"tinit": 3, "tfinal": 4})
    found = adapter_config(settings, "text", 50)
    assert (found.total_step, found.tinit, found.tfinal) == (50, 3, 4)
    own = TrainSettings(method="adalora", method_options={"total_step": 70, "tinit": 3, "tfinal": 4})
    assert adapter_config(own, "text", 50).total_step == 70
    assert settings.method_options == {"tinit": 3, "tfinal": 4}


@pytest.mark.parametrize(
    ("kind", "seq2seq", "task_type"),
    [
        ("instruction", False, "CAUSAL_LM"),
        ("text", False, "CAUSAL_LM"),
        ("instruction", True, "SEQ_2_SEQ_LM"),
        ("text", True, "SEQ_2_SEQ_LM"),
        ("classification", False, "SEQ_CLS"),
        ("regression", True, "SEQ_CLS"),
    ],
)
def test_the_kind_of_task_is_peft_s(kind, seq2seq, task_type):
    assert adapter_config(TrainSettings(), kind, 1, seq2seq).task_type == task_type


def test_a_task_is_of_a_decoder_alone_unless_it_is_said_to_be_of_two():
    assert adapter_config(TrainSettings(), "instruction", 1).task_type == "CAUSAL_LM"


@pytest.mark.parametrize(("alpha", "kind"), [(16, int), (16.0, int), (8.5, float)])
def test_a_whole_alpha_is_a_whole_number_and_any_other_is_kept(alpha, kind):
    found = adapter_config(TrainSettings(alpha=alpha), "text", 1).lora_alpha
    assert found == alpha
    assert type(found) is kind


def test_a_copy_without_weights_is_rid_of_accelerates_hooks_and_of_nothing_else():
    model = tiny("llama")
    hooked, own = model.model.layers[0].mlp, model.model.layers[1].mlp
    add_hook_to_module(hooked, ModelHook())
    own.forward = torch.zeros_like  # of its own, and no hook's doing
    assert {"_hf_hook", "_old_forward", "forward"} <= set(vars(hooked))
    found = without_weights(model)
    assert not {"_hf_hook", "_old_forward", "forward"} & set(vars(found.model.layers[0].mlp))
    assert found.model.layers[1].mlp.forward is torch.zeros_like
    assert {"_hf_hook", "_old_forward", "forward"} <= set(vars(hooked))
    weights, empty = dict(model.named_parameters()), dict(found.named_parameters())
    assert empty.keys() == weights.keys()
    for name, parameter in empty.items():
        assert parameter.is_meta
        assert parameter.shape == weights[name].shape
        assert not weights[name].is_meta


def test_without_a_seed_adapters_start_as_under_seed_zero():
    found = []
    for settings in ({}, {"seed": 0}, {"seed": 1}):
        model = tiny("llama")
        adapted = adapt(model, find_stack(model), [1], LoraConfig(r=2, target_modules=["q_proj"]), with_head=False)
        if settings:
            model = tiny("llama")
            config = LoraConfig(r=2, target_modules=["q_proj"])
            adapted = adapt(model, find_stack(model), [1], config, with_head=False, **settings)
        found.append(next(p.detach().clone() for n, p in adapted.named_parameters() if "lora_A" in n))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_layers_that_are_all_alike_are_targeted_without_a_warning(name):
    model = tiny(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        targets, _ = resolve_targets(model, find_stack(model), [0, 2, 3], LoraConfig(target_modules="all-linear"))
    assert len({tuple(targets.leaves(layer)) for layer in targets.layers}) == 1


def test_where_some_layers_lack_a_target_the_warning_names_just_those_targets():
    model = tiny("jamba")  # attention in the layers 1 and 3, a state space in the others
    stack = find_stack(model)
    config = LoraConfig(target_modules=["q_proj", "in_proj", "gate_proj"])
    with pytest.warns(UserWarning, match="not every selected layer has") as caught:
        resolve_targets(model, stack, [0, 1], config)
    (text,) = {str(w.message) for w in caught if "not every" in str(w.message)}
    named = text.partition(": ")[2].split(", ")
    assert named == ["mamba.in_proj", "self_attn.q_proj"]  # and not the feed-forward one, which both have


@pytest.mark.parametrize(
    ("name", "batch", "masked", "labels"),
    [
        ("llama", {"input_ids": 2}, False, None),
        ("llama", {"input_ids": 2, "labels": 2}, False, "kept"),
        ("bert", {"input_ids": 2, "labels": 1}, False, "left out"),
        ("t5", {"input_ids": 2, "labels": 2}, True, "kept"),
        ("bert", {"inputs_embeds": 3}, True, None),
    ],
)
def test_eva_masks_by_our_rule_where_pefts_own_one_cannot(name, batch, masked, labels, monkeypatch):
    calls = []
    monkeypatch.setattr(peft, "initialize_lora_eva_weights", lambda *given, **named: calls.append((given, named)))
    model = tiny(name)
    adapted = attach(model, find_stack(model), [1], LoraConfig(r=2, target_modules="all-linear"))
    batches = [{key: torch.ones((2,) * ndim, dtype=torch.long) for key, ndim in batch.items()}]
    _start_from_data(adapted, "default", batches, 0)
    ((_, inputs), named) = calls[0]
    assert named["adapter_name"] == "default"
    assert ("prepare_layer_inputs_fn" in named) == masked
    if masked:
        assert named["prepare_layer_inputs_fn"] is _real_tokens
        assert named["prepare_model_inputs_fn"] is None
    assert ("labels" in inputs[0]) == (labels == "kept")
    assert ("labels" in batches[0]) == (labels is not None)  # what is given stays as it is


@pytest.mark.skipif(not REWRITES, reason="this PEFT rewrites nothing")
def test_pefts_rewriting_for_fused_experts_leaves_the_given_config_as_it_was():
    model = tiny("qwen3-moe")
    config = LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"], rank_pattern={"q_proj": 4})
    before = copy.deepcopy(vars(config))
    found = converted_config(config, model)
    assert found.target_parameters  # it was rewritten
    assert found.rank_pattern != config.rank_pattern  # of two maps that became one
    assert vars(config) == before


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        (None, "all-linear"),
        ("all-linear", "all-linear"),
        ("q_proj", {"q_proj"}),
        ("self_attn.q_proj,down_proj", {"self_attn.q_proj", "down_proj"}),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),  # a regex for full names
    ],
)
def test_target_modules_are_a_list_of_names_or_a_regex(given, targets):
    assert adapter_config(TrainSettings(target_modules=given), "text", 1).target_modules == targets


def test_only_lora_on_what_writes_adapts_every_linear_layer_unasked():
    assert adapter_config(TrainSettings(), "classification", 1).target_modules is None
    assert adapter_config(TrainSettings(method="ia3"), "text", 1).target_modules is None
    for method in VARIANTS:
        assert adapter_config(TrainSettings(method=method), "instruction", 1).target_modules == "all-linear"


def test_an_option_that_a_method_does_not_have_is_refused_with_those_it_has():
    near = TrainSettings(method_options={"lora_dropuot": 0.1})
    with pytest.raises(AdapterError, match="did you mean 'lora_dropout'"):
        adapter_config(near, "text", 1)
    far = TrainSettings(method_options={"zzz": 1})
    with pytest.raises(AdapterError, match=r"LoraConfig has: alora_invocation_tokens, alpha_pattern, .*, \.\.\."):
        adapter_config(far, "text", 1)


def test_what_is_no_transformers_model_is_adapted_in_all_of_its_linear_layers():
    assert _wanted_modules(torch.nn.Sequential(torch.nn.Linear(2, 2)), LoraConfig()) == "all-linear"
    assert _wanted_modules(tiny("llama"), LoraConfig()) == ["q_proj", "v_proj"]  # PEFT's default
    assert _wanted_modules(tiny("llama"), LoraConfig(target_modules=["v_proj", "k_proj"])) == ["k_proj", "v_proj"]
    assert _wanted_modules(tiny("llama"), LoraConfig(target_modules=".*v_proj")) == ".*v_proj"


@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("model_type", ["afmoe", "glm4_moe", "ernie4_5_moe", "qwen3_next"])
def test_mixtures_with_shared_experts_are_adapted_where_peft_can(model_type, targets, caplog):
    model = tiny_model(model_type, "instruction")
    adapted = attach(model, find_stack(model), (1, 2), LoraConfig(r=2, target_modules=targets))
    names = adapted.base_model.targeted_module_names
    assert {name.split(".")[2] for name in names} == {"1", "2"}
    if REWRITES:  # and so leaves out shared experts; older versions adapt them
        assert not any(part in name for name in names for part in ("shared_expert.", "shared_experts."))
        assert "carry no adapter" in caplog.text


def test_a_failed_attempt_leaves_the_model_as_it_was():
    model = tiny_model("llama", "instruction")
    before = {name: type(module) for name, module in model.named_modules()}
    required = {name for name, p in model.named_parameters() if p.requires_grad}
    config = LoraConfig(r=2, target_modules=["q_proj", "input_layernorm"])
    with pytest.raises(AdapterError, match="PEFT cannot attach"):
        attach(model, find_stack(model), (1, 2), config)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert {name for name, p in model.named_parameters() if p.requires_grad} == required
    assert not hasattr(model, "peft_config")
    assert attach(model, find_stack(model), (1, 2), LoraConfig(r=2, target_modules=["q_proj"]))
