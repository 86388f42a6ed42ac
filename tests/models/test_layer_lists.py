"""`--layers "encoder=8-11 decoder=0-11"`: a list for each stack of blocks."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch.utils.flop_counter import FlopCounterMode

import layersift
from layersift.config.quantities import lists_of, towers_of
from layersift.errors import ModelError, SelectionError
from layersift.models.stacks import find_stack, layers_in, tell_layers
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from layersift.step.prefix import frozen_prefix
from tiny import tiny
from words import tokenizer

BOTH = "decoder=1,3 encoder=last:1"


def test_each_list_counts_in_its_own_stack():
    model = tiny("t5")
    stack = find_stack(model, towers_of(BOTH))
    layers = layers_in(stack, BOTH)
    assert [stack.block_path(layer) for layer in layers] == ["encoder.block.2", "decoder.block.1", "decoder.block.3"]
    assert tell_layers(stack, layers) == "encoder 2, 1 of 3; decoder 1, 3, 2 of 4"
    assert towers_of("0-3,last:2") is None


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("encoder=3", SelectionError, "there is no layer 3; the layers are 0 to 2"),
        ("encoder=0 encoder=1", SelectionError, "encoder is named twice"),
        ("encoder=0 1", SelectionError, "'1' names no stack"),
        ("encoder=", SelectionError, "names no stack"),
        ("encoder=x", SelectionError, "'x' names no layer"),
        ("encoder=0 encoder.block=1", SelectionError, "named twice"),
        ("vision=0", ModelError, "the model has no vision tower"),
    ],
)
def test_what_names_no_layers_of_a_stack_is_refused(text, error, said):
    with pytest.raises(error, match=said):
        layersift.Selection.of_layers(tiny("t5"), text)


def test_lists_are_taken_apart():
    assert lists_of(BOTH) == {"decoder": "1,3", "encoder": "last:1"}


def test_exactly_these_blocks_of_both_stacks_are_adapted_and_peft_loads_them(tmp_path):
    model = tiny("t5")
    selection = layersift.Selection.of_layers(model, BOTH)
    adapted = selection.attach(model, LoraConfig(r=2, target_modules=["q", "v"]))
    blocks = {name.split(".lora_")[0].split(".layer.")[0] for name, p in adapted.named_parameters() if p.requires_grad}
    wanted = {"decoder.block.1", "decoder.block.3", "encoder.block.2"}
    assert {name.removeprefix("base_model.model.") for name in blocks} == wanted
    adapted.save_pretrained(tmp_path / "adapter")
    selection.save(tmp_path / "selection.json")
    assert layersift.Selection.load(tmp_path / "selection.json") == selection
    again = PeftModel.from_pretrained(tiny("t5"), tmp_path / "adapter")
    names = {name.split(".lora_")[0].split(".layer.")[0] for name, _ in again.named_parameters() if "lora_" in name}
    assert {name.removeprefix("base_model.model.") for name in names} == wanted


def test_towers_of_a_model_that_sees_are_named_likewise():
    model = tiny("llava")
    selection = layersift.Selection.of_layers(model, "vision=1-2 language=last:2")
    names = selection.module_names(model, LoraConfig(target_modules=["q_proj"]))
    assert {name.split(".layers.")[1][0] for name in names if "vision" in name} == {"1", "2"}
    assert {name.split(".layers.")[1][0] for name in names if "language" in name} == {"2", "3"}


@pytest.mark.parametrize("text", [BOTH, "decoder=2-3", "encoder=1", "encoder=0-2 decoder=0-3"])
def test_a_step_on_both_stacks_is_planned_as_it_is_taken(text):
    model, config = tiny("t5"), LoraConfig(r=2, target_modules=["q", "v"])
    selection = layersift.Selection.of_layers(model, text)
    stack, size = selection.stack(model), StepSize("instruction", 4, 32)
    plan = Planner(model, stack, selection.config_for(model, config)).step(selection.selected_layers, size)
    adapted, counter = selection.attach(model, config).train(), FlopCounterMode(display=False)
    adapted.config._attn_implementation = "eager"
    with frozen_prefix(adapted), counter:
        read, written = (torch.ones(4, length, dtype=torch.long) for length in (32, 16))
        adapted(input_ids=read, labels=written).loss.backward()
    assert plan.flops == counter.get_total_flops()
    assert plan.parameters == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_training_takes_them_plans_them_and_says_so(tmp_path, call):
    tiny("t5").save_pretrained(tmp_path / "t5")
    tokenizer("decoder").save_pretrained(tmp_path / "t5")
    rows = [{"prompt": f"w{i} w{i % 7}", "response": f"w{i % 5}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    planned = call("inspect", "t5", "--plan", "--layers", BOTH, cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "layers: encoder 2, 1 of 3; decoder 1, 3, 2 of 4, counted from 0" in planned.stdout
    trained = call("train", "t5", "--data", "rows.jsonl", "--layers", BOTH, "--epochs", "1", "-o", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"on layers {BOTH} of the 7" in card
    layers = json.loads((tmp_path / "run" / "selection.json").read_text())["selected_layers"]
    assert layers == [2, 4, 6]
    exported = call("export", "run/selection.json", "--model", "t5", "--to", "peft", "--json", cwd=tmp_path)
    assert {name.split(".layer.")[0] for name in json.loads(exported.stdout)["adapted"]} == {
        "decoder.block.1", "decoder.block.3", "encoder.block.2"
    }  # fmt: skip
