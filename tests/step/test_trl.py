"""TRL's trainers with a selection's config and FrozenPrefix: the same weights, and fewer backward passes."""

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForSequenceClassification

from layersift import FrozenPrefix
from tiny import selection_of, tiny
from words import tokenizer

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LAYERS = (2, 3)


def said(start, count=3):
    return " ".join(f"w{(start + i) % 40}" for i in range(count))


def turn(role, text):
    return [{"role": role, "content": text}]


def supervised(model, **common):
    rows = [{"prompt": turn("user", said(i)), "completion": turn("assistant", said(i + 3, 4))} for i in range(16)]
    args = trl.SFTConfig(num_train_epochs=2, **common.pop("args"))
    return trl.SFTTrainer(model, args=args, train_dataset=datasets.Dataset.from_list(rows), **common)


def preferences(model, epochs=1, **common):
    rows = [{"prompt": said(i), "chosen": said(i + 3), "rejected": said(i + 9)} for i in range(16)]
    args = trl.DPOConfig(num_train_epochs=epochs, max_length=32, **common.pop("args"))
    return trl.DPOTrainer(model, args=args, train_dataset=datasets.Dataset.from_list(rows), **common)


def preferred_for_longer(model, **common):
    return preferences(model, epochs=3, **common)


def scored(model, **common):
    """A reward model, whose head is trained with the adapters."""
    model.config.num_labels, model.config.pad_token_id = 1, 0
    torch.manual_seed(0)
    scorer = LlamaForSequenceClassification(model.config)
    rows = [{"chosen": said(i, 6), "rejected": said(i + 9, 4)} for i in range(16)]
    args = trl.RewardConfig(num_train_epochs=3, max_length=32, **common.pop("args"))
    common["peft_config"].task_type = "SEQ_CLS"
    return trl.RewardTrainer(scorer, args=args, train_dataset=datasets.Dataset.from_list(rows), **common)


def rewarded(model, **common):
    rows = [{"prompt": said(i)} for i in range(8)]
    args = trl.GRPOConfig(
        num_train_epochs=1, num_generations=4, max_completion_length=6, beta=0.0, **common.pop("args")
    )

    def reward(completions, **columns):
        return [float(len(set(text.split()))) for text in completions]

    given = datasets.Dataset.from_list(rows)
    return trl.GRPOTrainer(model, reward_funcs=reward, args=args, train_dataset=given, **common)


def trained(make, place, callbacks, checkpointing):
    """The adapters after a training, its losses, and how often each block's backward pass was run."""
    model = tiny("llama")
    config = selection_of(model, LAYERS).peft_config(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    args = {"output_dir": str(place), "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True}
    args |= {"bf16": False, "seed": 0, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    args |= {"learning_rate": 1e-2, "gradient_checkpointing": checkpointing}
    tok = tokenizer("decoder", chat=True)
    trainer = make(model, args=args, processing_class=tok, peft_config=config, callbacks=callbacks)
    backward = [0] * 4
    blocks = trainer.model.base_model.model.model.layers
    for place_, block in enumerate(blocks):
        block.mlp.down_proj.register_full_backward_hook(
            lambda *_, place_=place_: backward.__setitem__(place_, backward[place_] + 1)
        )
    trainer.train()
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return weights, losses, backward


@pytest.mark.parametrize("make", [supervised, preferences, rewarded])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_weights_are_the_same_and_the_frozen_blocks_have_no_backward_pass(make, checkpointing, tmp_path):
    weights, losses, plain = trained(make, tmp_path, [], checkpointing)
    callback = FrozenPrefix()
    again, losses_again, backward = trained(make, tmp_path, [callback], checkpointing)
    assert callback.blocks == 2
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in weights} == set(LAYERS)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert losses_again == losses
    assert max(float(v.abs().max()) for n, v in again.items() if "lora_B" in n) > 0
    assert backward[:2] == [0, 0]
    assert backward[2:] == plain[2:]
    assert min(plain[2:]) > 0


def packed(model, **common):
    rows = [{"text": said(i, 3 + i % 5)} for i in range(32)]
    args = trl.SFTConfig(num_train_epochs=3, packing=True, max_length=16, **common.pop("args"))
    return trl.SFTTrainer(model, args=args, train_dataset=datasets.Dataset.from_list(rows), **common)


@pytest.mark.parametrize("make", [supervised, packed, preferred_for_longer, scored])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_from_the_second_epoch_on_the_prefix_is_served(make, checkpointing, tmp_path):
    weights, losses, _ = trained(make, tmp_path, [FrozenPrefix()], checkpointing)
    callback = FrozenPrefix(cache="auto")
    cached, losses_cached, _ = trained(make, tmp_path, [callback], checkpointing)
    assert callback.served
    if make is preferred_for_longer:  # of 24 passes, those of the reference model included: 4 and the one compared
        assert callback.served == 19
    if make is packed:  # documents in other company: attention sums them up in another order
        assert losses_cached == pytest.approx(losses, abs=1e-4)
    else:
        assert all(torch.equal(weights[name], cached[name]) for name in weights)
