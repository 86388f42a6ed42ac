"""Attention alone and the rest alone as target modules: together all that was adapted, and nothing twice."""

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import nn

from layersift.adapt.methods import kinds_of_modules
from layersift.models.stacks import find_stack

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 40}
CONFIGS = {
    "bert": tf.BertConfig(**SMALL),  # whose attention and MLP both end in output.dense
    "llama": tf.LlamaConfig(**SMALL),
    "gpt2": tf.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=40, n_positions=32),  # both end in c_proj
    "t5": tf.T5Config(d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, vocab_size=40),
}


def adapted(model, targets):
    """Names of the modules that PEFT itself adapts."""
    wanted = targets if "\\" in targets else targets.split(",")
    found = get_peft_model(model, LoraConfig(target_modules=wanted))
    return {name for name, module in found.base_model.model.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_the_kinds_are_all_of_the_blocks_maps_and_have_nothing_in_common(name, targets):
    torch.manual_seed(0)
    model = tf.AutoModel.from_config(CONFIGS[name])
    stack = find_stack(model, "encoder" if name == "t5" else None)
    kinds = kinds_of_modules(model, stack, LoraConfig(target_modules=targets))
    assert set(kinds) == {"attention", "mlp"}
    attention, mlp = (adapted(tf.AutoModel.from_config(CONFIGS[name]), kinds[kind]) for kind in ("attention", "mlp"))
    inside = {
        n
        for n, module in model.named_modules()
        if n.startswith(f"{stack.path}.") and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    }
    in_stack = {n for n in attention | mlp if n.startswith(f"{stack.path}.")}
    assert in_stack == inside
    assert not attention & mlp
    assert all("attention" in n.lower() or "attn" in n.lower() for n in attention)


def test_what_has_one_kind_of_modules_has_no_kinds():
    class Only(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}) for _ in range(2))

    model = Only()
    assert kinds_of_modules(model, find_stack(model), LoraConfig(target_modules=["a"])) == {}
    assert kinds_of_modules(model, find_stack(model), None) == {}
