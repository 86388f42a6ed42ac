"""The traps of PEFT's own layer selection, one test each; then that what is planned is what is attached."""

import json
import re
import warnings

import peft
import pytest
import torch
import transformers as tf
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from layersift.adapt.attach import verify
from layersift.adapt.targets import resolve_targets
from layersift.errors import AdapterError, SelectionError
from layersift.models.stacks import find_stacks
from tiny import CONFIGS, attach, selection_of, tiny

PEFT_VERSION = tuple(int(part) for part in peft.__version__.split(".")[:2])


def adapted(peft_model):
    """Names of the modules that carry an adapter, found without PEFT's own bookkeeping."""
    return {n for n, m in peft_model.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)}


def layers_of(names, pattern):
    path = re.escape(pattern).replace(r"\{\}", r"(\d+)")
    return sorted({int(re.match(path + r"\.", name)[1]) for name in names})


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"jamba"}))
def test_exactly_the_selected_layers_in_every_architecture(name):
    model = tiny(name)
    selection = selection_of(model, [1, 2])
    attached = adapted(attach(model, selection, LoraConfig(r=2, target_modules="all-linear")))
    assert layers_of(attached, selection.block_pattern) == [1, 2]
    assert len(attached) >= 2 * 4


@pytest.mark.parametrize(
    "targets", ["all-linear", r".*\.(q|v)_proj", ["q_proj", "v_proj"], None], ids=["all", "regex", "list", "default"]
)
def test_trap_1_every_form_of_target(targets):
    model = tiny("llama")
    selection = selection_of(model, [0, 3])
    attached = adapted(selection.attach(model, LoraConfig(r=2, target_modules=targets)))
    leaves = {name.rpartition(".")[2] for name in attached}
    assert layers_of(attached, "model.layers.{}") == [0, 3]
    everything = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert leaves == (everything if targets == "all-linear" else {"q_proj", "v_proj"})


def test_traps_2_and_3_experts_only_in_the_selected_layers():
    model = tiny("qwen3-moe")
    experts = [n for n, _ in model.named_parameters() if ".experts." in n]
    leaves = {name.rpartition(".")[2] for name in experts}
    assert leaves == {"gate_up_proj", "down_proj"}
    peft_model = attach(
        model,
        selection_of(model, [1, 3]),
        LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]),
    )
    trained = {re.search(r"layers\.(\d+)\.(self_attn|mlp)", n).groups() for n in trainable(peft_model)}
    assert trained == {("1", "self_attn"), ("1", "mlp"), ("3", "self_attn"), ("3", "mlp")}


@pytest.mark.skipif(PEFT_VERSION < (0, 20), reason="expert projections are rewritten since PEFT 0.20")
def test_trap_2_expert_projections_by_their_old_names():
    model = tiny("qwen3-moe")
    config = LoraConfig(r=2, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
    peft_model = attach(model, selection_of(model, [0, 2]), config)
    assert {int(re.search(r"layers\.(\d+)\.", n)[1]) for n in trainable(peft_model)} == {0, 2}
    assert any("experts" in n for n in trainable(peft_model))


def trainable(model):
    return [n for n, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("cls", [tf.LlamaModel, tf.BertModel, tf.GPT2Model])
def test_trap_4_bare_backbone_with_a_selection_of_the_headed_model(cls):
    name = cls.config_class.model_type
    selection = selection_of(tiny(name), [1, 2])
    backbone = tiny(name, cls)
    attached = adapted(attach(backbone, selection, LoraConfig(r=2)))
    assert layers_of(attached, selection_of(backbone, [1]).block_pattern) == [1, 2]


def test_traps_5_and_7_encoder_and_decoder_apart():
    model = tiny("t5")
    attached = adapted(attach(model, selection_of(model, [0, 2], "decoder"), LoraConfig(r=2)))
    assert all(name.startswith("decoder.block.") for name in attached)
    assert layers_of(attached, "decoder.block.{}") == [0, 2]


def test_traps_6_and_13_vision_tower_stays_untouched():
    model = tiny("llava")
    attached = adapted(attach(model, selection_of(model, [0, 1]), LoraConfig(r=2, target_modules=["q_proj"])))
    assert attached == {f"model.language_model.layers.{i}.self_attn.q_proj" for i in (0, 1)}


def test_trap_8_nested_stages():
    config = tf.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=2, num_labels=2
    )
    model = tf.SwinForImageClassification(config)
    selection = selection_of(model, [1])
    attached = adapted(attach(model, selection, LoraConfig(r=2, target_modules="all-linear")))
    assert attached
    assert layers_of(attached, selection.block_pattern) == [1]


@pytest.mark.parametrize(
    "setting", [{"layers_to_transform": [1]}, {"layers_to_transform": [1], "layers_pattern": "layers"}]
)
def test_trap_9_a_config_that_chooses_layers_itself(setting):
    model = tiny("llama")
    with pytest.raises(AdapterError, match="the selection chooses the layers"):
        attach(model, selection_of(model, [1]), LoraConfig(target_modules=["q_proj"], **setting))


@pytest.mark.parametrize("layers", [[], [-1], [4], [1, 1], [2, 1]])
def test_trap_10_layers_that_are_not_there(layers):
    with pytest.raises(SelectionError, match=r"no layer|not ascending indices below 4"):
        selection_of(tiny("llama"), layers)


def test_trap_12_twenty_names_are_kept_and_saved_in_stable_form(tmp_path):
    model = tiny("llama")
    config = selection_of(model, [1, 2, 3]).peft_config(model, LoraConfig(r=2, target_modules="all-linear"))
    peft_model = get_peft_model(model, config)
    assert len(adapted(peft_model)) == 21
    peft_model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["target_modules"] == (
        r"model\.layers\.(?:1|2|3)\.(?:mlp\.down_proj|mlp\.gate_proj|mlp\.up_proj|self_attn\.k_proj|"
        r"self_attn\.o_proj|self_attn\.q_proj|self_attn\.v_proj)"
    )
    again = peft.PeftModel.from_pretrained(tiny("llama"), tmp_path)
    assert adapted(again) == adapted(peft_model)


def test_trap_12_suffixes_do_not_reach_layer_11_from_layer_1():
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**{**CONFIGS["llama"]().to_diff_dict(), "num_hidden_layers": 12}))
    attached = adapted(attach(model, selection_of(model, [1]), LoraConfig(r=2, target_modules="all-linear")))
    assert layers_of(attached, "model.layers.{}") == [1]


def test_exclude_modules_are_honoured():
    model = tiny("llama")
    config = LoraConfig(r=2, target_modules="all-linear", exclude_modules=["down_proj"])
    attached = adapted(attach(model, selection_of(model, [2]), config))
    assert len(attached) == 6
    assert not any("down_proj" in name for name in attached)


def test_trap_15_hybrid_stacks_warn_and_keep_their_indices():
    model = tiny("jamba")
    with pytest.warns(UserWarning, match=r"not every selected layer has: .*q_proj"):
        peft_model = attach(model, selection_of(model, [0, 1]), LoraConfig(r=2, target_modules=["q_proj", "gate_proj"]))
    assert layers_of(adapted(peft_model), "model.layers.{}") == [0, 1]
    model = tiny("jamba")
    with pytest.raises(AdapterError, match=r"match nothing in layer 0, 2 of model\.layers"):
        attach(model, selection_of(model, [0, 1, 2]), LoraConfig(r=2, target_modules=["q_proj"]))


def test_trap_18_shared_layers_start_from_the_same_weights():
    def start(layers):
        model = tiny("llama")
        torch.manual_seed(len(layers))  # whatever the random state
        return dict(attach(model, selection_of(model, layers), LoraConfig(r=2), seed=5).named_parameters())

    few, many = start([2]), start([0, 1, 2, 3])
    shared = [n for n in few if "lora_" in n]
    assert len(shared) == 4
    assert all(torch.equal(few[n], many[n]) for n in shared)
    a = [many[n] for n in many if "q_proj.lora_A" in n]
    assert not torch.equal(a[0], a[1])


def test_seeding_leaves_the_random_state_and_peft_as_they_were():
    method = vars(peft.LoraModel)["_create_and_replace"]
    torch.manual_seed(3)
    expected = torch.rand(2)
    model = tiny("llama")
    torch.manual_seed(3)
    attach(model, selection_of(model, [1]), LoraConfig(r=2))
    assert torch.equal(torch.rand(2), expected)
    assert vars(peft.LoraModel)["_create_and_replace"] is method


def test_ia3_keeps_its_feedforward_modules_in_the_selected_layers():
    model = tiny("llama")
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    peft_model = attach(model, selection_of(model, [1, 2]), config)
    feedforward = {n for n, m in peft_model.base_model.model.named_modules() if getattr(m, "is_feedforward", False)}
    assert feedforward == {f"model.layers.{i}.mlp.down_proj" for i in (1, 2)}


def test_vera_and_a_classification_head():
    model = tiny("bert")
    config = VeraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    peft_model = attach(model, selection_of(model, [3]), config)
    assert adapted(peft_model) == {"bert.encoder.layer.3.attention.self.query"}
    assert any("classifier" in n for n in trainable(peft_model))


def test_a_head_among_the_targets_is_refused():
    model = tiny("llama")
    with pytest.raises(AdapterError, match="target module 'lm_head' matches nothing in the selected layers"):
        attach(model, selection_of(model, [1]), LoraConfig(target_modules=["q_proj", "lm_head"]))


def test_prompt_tuning_and_adapted_models_are_refused():
    model = tiny("llama")
    selection = selection_of(model, [1])
    with pytest.raises(AdapterError, match="PromptTuningConfig does not adapt modules"):
        attach(model, selection, peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(AdapterError, match="carries adapters already"):
        attach(get_peft_model(model, LoraConfig()), selection, LoraConfig())


def test_a_selection_for_another_model_is_refused():
    with pytest.raises(SelectionError, match=r"selection is for encoder\.block"):
        attach(tiny("llama"), selection_of(tiny("t5"), [1]), LoraConfig())


def test_a_difference_after_injection_is_an_error():
    model = tiny("llama")
    targets, _ = resolve_targets(model, find_stacks(model)[0], [1, 2], LoraConfig(target_modules=["q_proj"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = get_peft_model(model, LoraConfig(target_modules=["q_proj"], layers_to_transform=[2, 3]))
    with pytest.raises(AdapterError, match=r"1 missing \['model.layers.1.*1 too many \['model.layers.3"):
        verify(other, targets)
