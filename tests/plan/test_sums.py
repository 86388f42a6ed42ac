"""The sum over blocks against whole steps that are counted one by one: many architectures, any layers, with and without
checkpointing."""

import random
import warnings

import pytest
import torch
import transformers as tf
from peft import LoraConfig

from layersift.errors import ModelError
from layersift.models.stacks import find_stack
from layersift.plan import blocks
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from step_by_step import TrialStep
from tiny import CLASSES, CONFIGS, DECODER, SIZE

WRITERS = ("gpt2", "gpt-neox", "llama", "mistral", "gemma", "qwen3", "llava")
MODELS = {name: (CLASSES[name], CONFIGS[name]) for name in ("bert", "roberta", *WRITERS)} | {
    "mpnet": (tf.MPNetForSequenceClassification, lambda: tf.MPNetConfig(**SIZE)),
    "electra": (tf.ElectraForSequenceClassification, lambda: tf.ElectraConfig(**SIZE, embedding_size=16)),
    "modernbert": (
        tf.ModernBertForSequenceClassification,
        lambda: tf.ModernBertConfig(**SIZE, pad_token_id=0, global_attn_every_n_layers=2),
    ),
    "gemma3": (
        tf.Gemma3ForCausalLM,
        lambda: tf.Gemma3TextConfig(
            **DECODER, layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=8
        ),
    ),
    "lfm2": (tf.Lfm2ForCausalLM, lambda: tf.Lfm2Config(**DECODER, layer_types=["conv", "full_attention"] * 2)),
    "opt": (
        tf.OPTForCausalLM,
        lambda: tf.OPTConfig(
            hidden_size=32,
            num_hidden_layers=4,
            ffn_dim=48,
            num_attention_heads=4,
            vocab_size=60,
            word_embed_proj_dim=32,
        ),
    ),
    "bloom": (tf.BloomForCausalLM, lambda: tf.BloomConfig(hidden_size=32, n_layer=4, n_head=4, vocab_size=60)),
    "vit": (
        tf.ViTForImageClassification,
        lambda: tf.ViTConfig(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=16,
            patch_size=4,
        ),
    ),
}
LABELLED = ("bert", "roberta", "mpnet", "electra", "modernbert", "vit")
NO_CHECKPOINTING = ("mpnet",)


def empty(name):
    cls, config = MODELS[name]
    with torch.device("meta"):
        return cls(config()).eval()


def drawn(rng, count):
    """Layers, those of them that are trained, and whether gradients skip the others."""
    layers = tuple(sorted(rng.sample(range(count), rng.randint(1, count))))
    trained = tuple(sorted(rng.sample(layers, rng.randint(1, len(layers)))))
    return layers, trained, rng.random() < 0.3


def assert_same(plan, trial):
    flops, forward = trial.flops()
    assert plan.flops == flops
    assert plan.forward_flops == forward
    assert plan.parameters == trial.count
    assert plan.state_bytes == trial.state_bytes + trial.resting_bytes
    assert plan.memory_bytes == pytest.approx(trial.peak_bytes(), rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_sum_over_blocks_is_what_a_whole_step_counts(name, checkpointing):
    if checkpointing and name in NO_CHECKPOINTING:
        pytest.skip("it cannot be checkpointed")
    model, rng = empty(name), random.Random(f"{name} {checkpointing}")
    stack = find_stack(model)
    config = LoraConfig(r=4, target_modules="all-linear")
    size = StepSize("classification" if name in LABELLED else "instruction", 2, 24, checkpointing=checkpointing)
    planner, everything = Planner(model, stack, config), tuple(range(stack.num_layers))
    for layers, trained, skipping in ((everything, everything, False), *(drawn(rng, 4) for _ in range(2))):
        plan = planner.step(layers, size, trained=trained, skipping=skipping)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same(plan, TrialStep(model, stack, layers, config, size, trained=trained, passed=skipping))


@pytest.mark.parametrize("config", [None, "rank by module", "default"])
def test_whole_blocks_ranks_by_module_and_hybrids_are_sums_too(config):
    name = "lfm2" if config == "default" else "llama"
    model = empty(name)
    adapter = {
        None: None,
        "rank by module": LoraConfig(r=4, target_modules=["q_proj", "up_proj"], rank_pattern={r"model.layers.1.*": 2}),
        "default": LoraConfig(r=4, target_modules=["q_proj", "v_proj", "w1"]),
    }[config]
    stack, size = find_stack(model), StepSize("instruction", 2, 24)
    planner = Planner(model, stack, adapter)
    for layers in ((1, 3), (1, 2)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same(planner.step(layers, size), TrialStep(model, stack, layers, adapter, size))


def test_a_model_that_cannot_be_checkpointed_says_so():
    model = empty("mpnet")
    planner = Planner(model, find_stack(model), LoraConfig(r=4, target_modules="all-linear"))
    with pytest.raises(ModelError, match="MPNetForSequenceClassification cannot be checkpointed"):
        planner.step((1,), StepSize("classification", 2, 24, checkpointing=True))
    assert planner.step((1,), StepSize("classification", 2, 24)).flops > 0


def test_each_kind_of_block_is_measured_once_however_many_there_are(monkeypatch):
    runs = []
    real = blocks.measure_block
    monkeypatch.setattr(blocks, "measure_block", lambda *given: runs.append(1) or real(*given))

    def measured(layers):
        runs.clear()
        with torch.device("meta"):
            model = tf.LlamaForCausalLM(tf.LlamaConfig(**{**DECODER, "num_hidden_layers": layers}))
        planner = Planner(model, find_stack(model), LoraConfig(r=4, target_modules=["q_proj"]))
        for mask in ((0, 2), (1, 3), tuple(range(layers))):
            planner.step(mask, StepSize("instruction", 2, 24))
        return len(runs)

    assert measured(10) == measured(5) < 8
