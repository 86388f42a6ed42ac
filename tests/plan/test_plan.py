"""The plan of a step against steps that were taken."""

import functools
import json
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from peft import LoraConfig, VeraConfig
from torch.utils.flop_counter import FlopCounterMode

from layersift.errors import AdapterError, ModelError
from layersift.models.stacks import find_stack
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize, image_shape
from layersift.report.model_report import PARTS
from layersift.step.losses import ResponseLoss
from layersift.step.prefix import frozen_prefix
from pictures import save_vit
from step_by_step import Counter
from tiny import DECODER, attach, selection_of, tiny

TARGETS = {"bert": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"], "gemma": "all-linear"}
SIZE = {"batch_size": 4, "tokens": 32}


def plan(model, stack, layers, config, size):
    return Planner(model, stack, config).step(layers, size)


def lora(name):
    return LoraConfig(r=4, target_modules=TARGETS[name])


def planned(name, layers=(2, 3), dtype=torch.float32, **settings):
    model = tiny(name).to(dtype)
    kind = "classification" if name == "bert" else "instruction"
    return plan(model, find_stack(model), layers, lora(name), StepSize(kind, **{**SIZE, **settings}))


@functools.cache
def taken(name, layers=(2, 3), checkpointing=False, dtype=torch.float32):
    """A real step: flops, attention apart, and the most that was alive."""
    base = tiny(name).to(dtype)
    base.config._attn_implementation = "sdpa"
    model = attach(base, selection_of(base, layers), lora(name)).train()
    if name == "bert":
        base.classifier.requires_grad_(True)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    ids = torch.randint(5, 100, (4, 32))
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0  # a batch without padding is masked in another way
    labels = ids.clone()
    labels[:, :16] = -100
    trained = [p for p in model.parameters() if p.requires_grad]
    with frozen_prefix(model), Counter(trained) as counter:
        if name == "bert":
            loss = model(input_ids=ids, labels=torch.zeros(4, dtype=torch.long)).loss
        else:
            inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            loss = ResponseLoss(head_is_all=True)(model, inputs)
        loss.backward()
    return counter.products["aten.mm"] + counter.products["aten.addmm"], counter.most


def attention(name, blocks_with_graph, blocks=4, checkpointing=False, width=32):
    """Two products forward, five backward, of queries, keys and values (4, 32 tokens).

    BERT and GPT-2 draw dropout there, for which CPUs have no fused kernel: one product less is computed again, and none
    for BERT's keys in the lowest adapted block, which neither carry an adapter nor are made of anything trained.
    """
    one, drawn = 2 * 4 * 32 * 32 * width, name in ("bert", "gpt2") and not torch.cuda.is_available()
    backward = (4 if drawn else 5) * blocks_with_graph
    if name == "bert" and drawn and not (checkpointing and blocks_with_graph == blocks):
        backward -= 1
    return one * (2 * blocks + backward + (2 * blocks_with_graph if checkpointing else 0))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("layers", [(2, 3), (0, 3), (1,)])
def test_operations_are_those_of_a_step_that_was_taken(name, layers, checkpointing):
    products, _ = taken(name, layers, checkpointing)
    graph = 4 - layers[0]
    assert planned(name, layers, checkpointing=checkpointing).flops == products + attention(
        name, graph, 4, checkpointing
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_memory_is_that_of_a_step_that_was_taken(name, checkpointing):
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        _, most = taken(name, checkpointing=checkpointing, dtype=dtype)
        found[dtype] = planned(name, checkpointing=checkpointing, dtype=dtype).activation_bytes
        assert found[dtype] == pytest.approx(most, rel=0.1)
    assert found[torch.bfloat16] != found[torch.float32]


def test_whole_blocks_that_are_trained_are_counted_once_as_part_of_the_model():
    model = tiny("llama")
    stack = find_stack(model)
    plan = Planner(model, stack, None).step((2, 3), StepSize("text", 2, 8))
    trained = sum(p.nbytes for layer in (2, 3) for p in stack.blocks(model)[layer].parameters())
    assert (plan.adapter_bytes, plan.gradient_bytes, plan.optimizer_bytes) == (0, trained, 2 * trained)


def test_what_costs_less_is_planned_to_cost_less():
    all_, upper, lower = (planned("llama", layers) for layers in ((0, 1, 2, 3), (2, 3), (0, 1)))
    assert all_.parameters == 2 * upper.parameters == 2 * lower.parameters
    assert all_.state_bytes == 16 * all_.parameters
    assert upper.flops < lower.flops < all_.flops
    assert upper.memory_bytes < lower.memory_bytes < all_.memory_bytes
    long = planned("llama", tokens=64)
    assert 2 < long.flops / upper.flops < 3
    deep = tf.LlamaForCausalLM(tf.LlamaConfig(**{**DECODER, "num_hidden_layers": 16}))
    stack = find_stack(deep)
    kept, again = (
        plan(deep, stack, range(16), lora("llama"), StepSize("instruction", **SIZE, checkpointing=c))
        for c in (False, True)
    )
    assert again.activation_bytes < 0.5 * kept.activation_bytes
    assert again.flops > kept.flops


def test_whole_blocks_and_models_without_weights():
    with torch.device("meta"):
        model = tiny("llama")
    stack = find_stack(model)
    found = plan(model, stack, (3,), None, StepSize("instruction", **SIZE))
    assert found.parameters == sum(p.numel() for p in model.model.layers[3].parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_what_cannot_be_planned_says_so():
    model = tiny("qwen3-moe")
    stack = find_stack(model)
    with pytest.raises(ModelError, match="Qwen3MoeForCausalLM does not run without weights"):
        plan(model, stack, (3,), LoraConfig(target_modules=["q_proj"]), StepSize("instruction", **SIZE))
    llama = tiny("llama")
    with pytest.raises((AdapterError, ModelError)):
        plan(llama, find_stack(llama), (3,), VeraConfig(target_modules=["nothing"]), StepSize("instruction", **SIZE))


def test_inspect_prints_the_plan(call, llama_directory, bert_directory, tmp_path):
    for directory in (llama_directory, bert_directory):
        shown = call("inspect", directory, "--plan", "--tokens", "32", "--batch-size", "4", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "last half" in shown.stdout
        assert "2,114 (0.51)" in shown.stdout or "(0.50)" in shown.stdout
    values = call("inspect", llama_directory, "--plan", "--json", cwd=tmp_path)
    whole = json.loads(values.stdout)["plan"]
    assert [p["name"] for p in whole] == ["all", "last half", "first half"]
    assert "32 bits a number" in shown.stdout
    shorter = call("inspect", llama_directory, "--plan", "--dtype", "bfloat16", cwd=tmp_path)
    assert "16 bits a number" in shorter.stdout
    values = call("inspect", llama_directory, "--plan", "--dtype", "bfloat16", "--json", cwd=tmp_path)
    half = json.loads(values.stdout)["plan"]
    assert half[0]["state_bytes"] == whole[0]["state_bytes"]  # PEFT trains adapters in 32 bits
    assert half[0]["activation_bytes"] < whole[0]["activation_bytes"]


def test_inspect_says_whether_a_step_fits_and_what_would(call, bert_directory, tmp_path):
    step = ("inspect", bert_directory, "--plan", "--tokens", "32", "--batch-size", "64")
    values = json.loads(call(*step, "--device-name", "RTX 4090", "--json", cwd=tmp_path).stdout)
    whole = values["plan"][0]["memory"]
    assert whole["expected"] == sum(whole[part] for part in PARTS)
    assert whole["high"] == whole["expected"] + whole["margin"]
    assert values["verdict"].startswith("all: it will fit")
    shown = call(*step, "--memory", f"{(whole['high'] - 2000) / 1e6}MB", cwd=tmp_path).stdout.splitlines()[-2]
    assert "will not fit" in shown
    assert all(what in shown for what in ("last half", "--batch-size 32 ", "--gradient-checkpointing"))
    none = call(*step, "--memory", "1kB", cwd=tmp_path).stdout.splitlines()[-2]
    assert "these would" not in none
    timed = call(*step, "--device-name", "RTX 4090", "--dtype", "bfloat16", cwd=tmp_path).stdout
    assert "30% of RTX 4090's 165 TFLOP/s in bfloat16" in timed


@pytest.mark.parametrize(("kind", "targets"), [("vit", ["q_proj", "v_proj"]), ("dinov2", ["query", "value"])])
def test_models_of_images_are_planned_as_they_train(kind, targets, tmp_path, call):
    base = tf.AutoModelForImageClassification.from_pretrained(save_vit(tmp_path / kind, kind))
    stack, layers = find_stack(base), (2, 3)
    names = {n.rpartition(".")[2] for n, m in stack.blocks(base)[0].named_modules() if isinstance(m, torch.nn.Linear)}
    config = LoraConfig(r=4, target_modules=[name for name in targets if name in names] or sorted(names)[:2])
    found = plan(base, stack, layers, config, StepSize("classification", 4, 1))
    assert plan(base, stack, layers, config, StepSize("classification", 4, 1, image=(3, 16, 16))).flops == found.flops
    model = attach(base, selection_of(base, layers), config).train()
    base.classifier.requires_grad_(True)
    counter = FlopCounterMode(display=False)
    base.config._attn_implementation = "eager"
    with frozen_prefix(model), counter:
        model(pixel_values=torch.randn(4, 3, 16, 16), labels=torch.zeros(4, dtype=torch.long)).loss.backward()
    # The fused kernel multiplies once more, backwards, than plain attention does.
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert found.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    shown = call("inspect", tmp_path / kind, "--plan", "--batch-size", "4", cwd=tmp_path)
    assert "One step on 4 samples of 3 x 16 x 16 numbers (classification):" in shown.stdout, shown.stderr


def test_a_model_of_images_whose_config_names_no_size_is_refused():
    model = torch.nn.Linear(1, 1)
    assert image_shape(model) is None
    model.main_input_name, model.config = "pixel_values", SimpleNamespace(num_channels=1, image_size=[8, 12])
    assert image_shape(model) == (1, 8, 12)
    model.config = SimpleNamespace(num_channels=1)
    with pytest.raises(ModelError, match="Linear: its config names no image_size"):
        image_shape(model)


def test_a_plan_with_checkpointing_leaves_the_next_one_as_it_is():
    model = tiny("bert")
    planner = Planner(model, find_stack(model), lora("bert"))
    planner.step((2, 3), StepSize("classification", **SIZE, checkpointing=True))
    assert planner.step((0, 1), StepSize("classification", **SIZE)) == planned("bert", (0, 1))
