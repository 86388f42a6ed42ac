"""Gradients under the frozen prefix equal plain autograd's to the bit, whatever is trained and wherever it stands."""

import copy

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from layersift.models.stacks import find_stacks
from layersift.represent.hooks import tensors_in
from layersift.step.prefix import Wanted, frozen_prefix
from prefixed import runs
from tiny import DECODER, SIZE, tiny

IDS = torch.randint(3, 110, (2, 12), generator=torch.Generator().manual_seed(0))


def deberta():
    return tf.DebertaV2ForSequenceClassification(
        tf.DebertaV2Config(
            **SIZE,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=16,
            share_att_key=True,
            conv_kernel_size=3,
            norm_rel_ebd="layer_norm",
        )
    )


def vision_decoder():
    encoder = tf.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    decoder = tf.GPT2Config(
        n_embd=32, n_head=4, n_layer=4, vocab_size=120, n_positions=64, add_cross_attention=True, is_decoder=True
    )
    both = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    both.decoder_start_token_id, both.pad_token_id = 1, 0
    return tf.VisionEncoderDecoderModel(both)


def voxtral():
    audio = {
        "model_type": "voxtral_encoder",
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_mel_bins": 16,
        "max_source_positions": 8,
        "vocab_size": 120,
    }
    text = {"model_type": "llama", **DECODER}
    return tf.VoxtralForConditionalGeneration(
        tf.VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=119)
    )


def inputs_of(name):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    mask = {"attention_mask": torch.ones_like(IDS)}
    if name in ("bert", "deberta"):
        return {"input_ids": IDS, **mask, "labels": torch.tensor([0, 1])}
    if name == "vision-decoder":
        return {"pixel_values": pixels, "labels": IDS}
    if name == "voxtral":
        ids = IDS.clone()
        ids[:, 1:3] = 119
        return {"input_ids": ids, **mask, "input_features": torch.randn(2, 16, 16, generator=generator), "labels": IDS}
    if name == "t5":
        return {"input_ids": IDS, **mask, "labels": IDS}
    return {"input_ids": IDS, **mask, "labels": IDS}


MODELS = {
    "llama": lambda: tiny("llama"),
    "gpt2": lambda: tiny("gpt2"),
    "gemma": lambda: tiny("gemma"),
    "bert": lambda: tiny("bert"),
    "t5": lambda: tiny("t5"),
    "deberta": deberta,
    "vision-decoder": vision_decoder,
    "voxtral": voxtral,
}
# What is trained beside the top blocks, by a piece of its name.
OTHERS = ["embed", "projector", "enc_to_dec_proj", "rel_embeddings", "conv", "norm", "head", "classifier", "none"]


def trained(model, other, blocks):
    """Train the named blocks of every stack and whatever else is called so."""
    stacks = find_stacks(model)
    inside = tuple(f"{stack.path}." for stack in stacks)
    chosen = tuple(f"{stack.block_path(i)}." for stack in stacks for i in blocks if i < stack.num_layers)
    for name, parameter in model.named_parameters():
        outside = not name.startswith(inside) or "conv" in name
        parameter.requires_grad_(name.startswith(chosen) or (outside and other in name.lower()))
    return model


def gradients(model, inputs, checkpointing, frozen):
    model = copy.deepcopy(model)
    for module in model.modules():  # dropout would differ from pass to pass
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    torch.manual_seed(0)
    if frozen:
        with frozen_prefix(model):
            model(**inputs).loss.backward()
    else:
        model(**inputs).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(
    other=st.sampled_from(OTHERS),
    blocks=st.sets(st.integers(0, 3), min_size=1, max_size=3),
    checkpointing=st.booleans(),
)
def test_gradients_equal_plain_autograds_to_the_bit(name, other, blocks, checkpointing):
    torch.manual_seed(0)
    model = trained(MODELS[name](), other, blocks)
    if checkpointing and not model.supports_gradient_checkpointing:
        return
    wanted = gradients(model, inputs_of(name), checkpointing, frozen=False)
    found = gradients(model, inputs_of(name), checkpointing, frozen=True)
    assert found.keys() == wanted.keys(), (other, blocks)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize(
    ("name", "saved"),
    [("voxtral", "multi_modal_projector"), ("vision-decoder", "enc_to_dec_proj"), ("deberta", "conv")],
)
def test_what_feeds_a_stack_and_is_registered_behind_it_is_trained(name, saved):
    torch.manual_seed(0)
    base = MODELS[name]()
    path = next(s for s in reversed(find_stacks(base))).path.replace(".", r"\.")
    last = find_stacks(base)[-1].num_layers - 1
    targets = rf"{path}\.{last}\..*(q_proj|c_attn|query_proj)"
    found = []
    for frozen in (False, True):
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=targets, modules_to_save=[saved], init_lora_weights=False)
        found.append(gradients(get_peft_model(copy.deepcopy(base), config), inputs_of(name), False, frozen))
    assert found[0].keys() == found[1].keys()
    reached = [key for key in found[0] if saved in key]
    assert reached
    for key, value in found[0].items():
        assert torch.equal(found[1][key], value), key


def test_inputs_that_want_a_gradient_get_it():
    model = trained(tiny("llama"), "none", {3})
    model.train()
    wanted = []
    for frozen in (False, True):
        states = model.get_input_embeddings()(IDS).detach().requires_grad_()
        inputs = {"inputs_embeds": states, "labels": IDS}
        if frozen:
            with frozen_prefix(model):
                model(**inputs).loss.backward()
        else:
            model(**inputs).loss.backward()
        wanted.append(states.grad)
        model.zero_grad()
    assert torch.equal(*wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_leaf_that_checkpointing_makes_is_not_taken_for_a_trained_one(reentrant):
    from prefixed import adapted, batch
    from prefixed import gradients as of

    model = adapted(checkpointing={"use_reentrant": reentrant})
    with frozen_prefix(model):
        forward, backward = runs(model, lambda: of(model, batch()))
    assert backward == [False, False, True, True]
    assert forward[:2] == [1, 1]


def test_a_patch_that_an_exception_left_behind_does_not_hold_the_next_training_down():
    model = tiny("llama")
    left = frozen_prefix(trained(model, "none", {3}))
    left.__enter__()  # and never left: on_train_end does not come after Ctrl-C
    trained(model, "none", {0, 3})
    model.train()
    model(**inputs_of("llama")).loss.backward()
    assert all(p.grad is not None for p in model.model.layers[0].parameters())


def test_graphs_are_followed_to_their_leaves():
    wanted = Wanted()
    weight, fake = torch.nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True)
    assert wanted.behind(({"x": (weight * 2).exp()},))
    assert wanted.behind([weight])
    assert not wanted.behind((fake * 2, fake, torch.ones(2)))
    assert wanted.behind((fake * 2 + weight,))
    assert [t.numel() for t in tensors_in({"a": [torch.ones(1), (torch.ones(2), None)], "b": 3})] == [1, 2]
