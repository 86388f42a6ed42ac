"""Adapters on some layers while other modules are trained themselves, by PEFT's modules_to_save."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch.utils.flop_counter import FlopCounterMode

import layersift
from layersift.errors import AdapterError
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from layersift.step.losses import ResponseLoss
from layersift.step.prefix import frozen_prefix
from tiny import tiny
from words import tokenizer

SIZE = StepSize("instruction", 4, 32, response_share=1.0)


def mixed(layers, saved):
    """Planned FLOPs and parameters, those of a real step, and which blocks got gradients."""
    model = tiny("llama")
    model.set_attn_implementation("eager")  # before PEFT copies a block with its config
    selection = layersift.Selection.of_layers(model, layers)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=saved)
    plan = Planner(model, selection.stack(model), selection.config_for(model, config)).step(
        selection.selected_layers, SIZE
    )
    adapted, counter = selection.attach(model, config).train(), FlopCounterMode(display=False)
    ids = torch.ones(4, 32, dtype=torch.long)
    with frozen_prefix(adapted), counter:
        inputs = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}
        ResponseLoss(head_is_all=True)(adapted, inputs).backward()
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    reached = {n.split(".layers.")[1][0] for n, p in adapted.named_parameters() if p.grad is not None}
    return plan, counter.get_total_flops(), trained, reached


@pytest.mark.parametrize(("layers", "saved", "reached"), [("1", "layers.3", "13"), ("2", "layers.1", "12")])
def test_blocks_that_are_trained_themselves_are_planned_as_they_are_taken(layers, saved, reached):
    plan, flops, trained, own = mixed(layers, [saved])
    assert own == set(reached)
    assert plan.parameters == trained
    plain, without, _, _ = mixed(f"{reached[0]}", None)  # as far down, so that the same blocks are passed backwards
    assert plan.layers == (int(layers),)
    assert (plan.flops - plain.flops) == pytest.approx(flops - without, rel=0.02)


def test_what_cannot_be_planned_or_trained_so_is_refused_in_one_line():
    with pytest.raises(AdapterError, match=r"embed_tokens.*cannot be planned"):
        mixed("1", ["embed_tokens"])
    with pytest.raises(AdapterError, match=r"model.layers.1.* carries an adapter, but modules_to_save trains"):
        mixed("1", ["layers.1"])


def test_a_mixed_run_is_written_merged_judged_and_loaded_by_peft(tmp_path, call):
    tiny("llama").save_pretrained(tmp_path / "llama")
    tokenizer("decoder").save_pretrained(tmp_path / "llama")
    rows = [{"prompt": f"w{i} w{i % 7}", "response": f"w{i % 5}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--layers", "1", "--epochs", "1", "--merge", "-o", "run", "--method-option")
    saved = "modules_to_save=[layers.3, embed_tokens]"
    done = call("train", "llama", "--data", "rows.jsonl", *options, saved, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, merged = tiny("llama"), type(tiny("llama")).from_pretrained(tmp_path / "run" / "merged")
    new = dict(merged.named_parameters())
    moved = {name for name, old in before.named_parameters() if not torch.equal(old, new[name])}
    assert {name.split(".layers.")[1][0] for name in moved if ".layers." in name} == {"1", "3"}
    assert "model.embed_tokens.weight" in moved
    loaded = PeftModel.from_pretrained(tiny("llama"), tmp_path / "run").merge_and_unload()
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(loaded(ids).logits, merged(ids).logits)
    judged = call("evaluate", "run", "--data", "rows.jsonl", cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    refused = call("export", "run", "--to", "trl", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "modules_to_save" in refused.stderr
