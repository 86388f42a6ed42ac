"""Every PEFT method that targets modules: on the selected layers only, trained, saved, loaded."""

import warnings

import pytest
import torch
from peft import PeftModel

from layersift.adapt.attach import attach
from layersift.adapt.methods import VARIANTS, make_config, peft_types
from layersift.errors import AdapterError, LayersiftError
from tiny import selection_of, tiny

NAMES = [*VARIANTS, *sorted(set(peft_types()) - {"lora"})]
OPTIONS = {  # sizes that fit matrices of 32 x 32, and what a method cannot do without
    "adalora": {"total_step": 10},
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 50},
    "road": {"group_size": 8},
    "vblora": {"vector_length": 8},
    "waveft": {"n_frequency": 50},
}


def config(name, **options):
    return make_config(
        name,
        rank=4,
        alpha=8,
        dropout=0.0,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        options=OPTIONS.get(name, {}) | options,
    )


@pytest.mark.parametrize("name", NAMES)
def test_only_the_selected_layers_move_and_a_saved_adapter_gives_the_same_outputs(tmp_path, name):
    model = tiny("llama")
    before = {n: p.clone() for n, p in model.named_parameters()}
    ids = torch.randint(3, 100, (4, 12), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = attach(model, selection_of(model, [1, 3]), config(name)).train()
        trained = [p for p in peft_model.parameters() if p.requires_grad]
        assert trained
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        losses = []
        for _ in range(3):
            loss = peft_model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
        assert losses[-1] < losses[0]
        peft_model.eval()
        expected = peft_model(input_ids=ids).logits
        peft_model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny("llama"), tmp_path).eval()
        torch.testing.assert_close(again(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
        after = {n.replace(".base_layer", ""): p for n, p in peft_model.base_model.model.named_parameters()}
    outside = [n for n in before if not n.startswith(("model.layers.1.", "model.layers.3."))]
    assert len(outside) > 20
    for parameter_name in outside:
        assert torch.equal(after[parameter_name], before[parameter_name]), parameter_name


def test_common_settings_reach_each_configs_own_names():
    assert (config("lora").r, config("lora").lora_alpha) == (4, 8)
    assert config("loha").alpha == 8
    assert config("adalora", total_step=10).target_r == 4
    assert config("pissa").init_lora_weights == "pissa"
    assert config("dora").use_dora is True
    assert config("vera").r == 256
    assert config("lora", r=7).r == 7


def test_unknown_methods_and_options():
    with pytest.raises(LayersiftError, match=r"unknown method 'loras'\. Did you mean 'lora'"):
        config("loras")
    with pytest.raises(LayersiftError, match="unknown method 'poly'"):
        config("poly")
    with pytest.raises(AdapterError, match="has no option 'lora_alfa'; did you mean 'lora_alpha'"):
        config("lora", lora_alfa=3)
    with pytest.raises(AdapterError, match=r"method 'adalora': .*total_step"):
        make_config("adalora", rank=4, alpha=8, dropout=0, target_modules=None, task_type="CAUSAL_LM")
