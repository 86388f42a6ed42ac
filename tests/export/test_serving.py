"""`export --to serving`: a directory whose config names modules in full, as servers read it, and loads as before."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tiny import selection_of, tiny


def adapter(directory, **settings):
    """As a user has it who trained with a config of ours: PEFT writes the regex."""
    model = tiny("llama")
    selection = selection_of(model, [1, 3])
    adapted = get_peft_model(model, selection.peft_config(model, LoraConfig(r=4, **settings)))
    for number, (name, parameter) in enumerate(adapted.named_parameters()):
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    adapted.save_pretrained(directory)
    return adapted


def test_modules_are_named_in_full_and_the_adapter_is_the_same(tmp_path, call):
    adapted = adapter(tmp_path / "trained")
    before = json.loads((tmp_path / "trained" / "adapter_config.json").read_text())
    assert isinstance(before["target_modules"], str)
    (tmp_path / "trained" / "tokenizer_config.json").write_text("{}")
    result = call("export", tmp_path / "trained", "--to", "serving", "-o", tmp_path / "served", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "served" / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"model.layers.{i}.self_attn.{n}_proj" for i in (1, 3) for n in "qv"]
    assert {k for k in config if config[k] != before[k]} == {"target_modules"}
    assert (tmp_path / "served" / "tokenizer_config.json").is_file()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    again = PeftModel.from_pretrained(tiny("llama"), tmp_path / "served")
    ids = torch.arange(3, 15).reshape(2, 6)
    assert torch.equal(again(input_ids=ids).logits, adapted(input_ids=ids).logits)


def test_twenty_modules_stay_full_names(tmp_path, call):
    """PEFT shortens lists of twenty and more when it attaches; what is on disk stays as it was written."""
    adapter(tmp_path / "trained", target_modules="all-linear")
    call("export", tmp_path / "trained", "--to", "serving", "-o", tmp_path / "served", cwd=tmp_path)
    config = json.loads((tmp_path / "served" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == 14
    PeftModel.from_pretrained(tiny("llama"), tmp_path / "served").save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "adapter_model.safetensors").keys() == (
        load_file(tmp_path / "trained" / "adapter_model.safetensors").keys()
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"use_dora": True}, "DoRA, which vLLM"), ({"modules_to_save": ["lm_head"]}, "whole modules (lm_head)")],
)
def test_what_servers_refuse_is_refused(settings, said, tmp_path, call):
    adapter(tmp_path / "trained", **settings)
    result = call("export", tmp_path / "trained", "--to", "serving", "-o", tmp_path / "served", cwd=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr
    assert "--merge" in result.stderr
    assert not (tmp_path / "served").exists()


def test_weights_of_anything_else_are_refused(tmp_path, call):
    adapter(tmp_path / "trained")
    file = tmp_path / "trained" / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, file)
    result = call("export", tmp_path / "trained", "--to", "serving", "-o", tmp_path / "served", cwd=tmp_path)
    assert "base_model.model.lm_head.weight is no pair of LoRA matrices" in result.stderr


def test_nothing_is_overwritten_and_a_directory_is_asked_for(tmp_path, call):
    adapter(tmp_path / "trained")
    result = call("export", tmp_path / "trained", "--to", "serving", "-o", tmp_path / "trained", cwd=tmp_path)
    assert result.returncode == 2
    assert "overwrites nothing" in result.stderr
    assert "give --output" in call("export", tmp_path / "trained", "--to", "serving", cwd=tmp_path).stderr
