"""What is left out of a pass over a causal model does not change what is read, and is left out."""

from dataclasses import replace

import pytest
import torch
import transformers as tf

from layersift.models.stacks import find_stack, find_stacks
from layersift.represent import causal
from layersift.represent.hooks import evaluation_mode
from layersift.represent.positions import POSITIONS, get_position
from states import TEXT, make_examples, reference
from tiny import CONFIGS, DECODER, read_all, read_at, tiny

BEGINNING = (7, 9, 11, 7, 30, 31, 32, 33)
DECODERS = [name for name in TEXT if name not in ("bert", "roberta", "deberta-v2")]
SHARING = [name for name in DECODERS if name != "jamba"]  # its recurrent states are kept in another way


def with_beginning(examples):
    return [
        replace(
            e,
            input_ids=BEGINNING + e.input_ids,
            content=(True,) * len(BEGINNING) + e.content,
            response=(False,) * len(BEGINNING) + e.response,
        )
        for e in examples
    ]


class Counted:
    """Tokens that pass through the first block, and whether any of them came with keys and values of earlier ones."""

    def __init__(self, model):
        self.tokens = 0
        self.stack = find_stack(model)
        block = self.stack.blocks(model)[0]
        block.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        self.tokens += hidden.shape[0] * hidden.shape[1]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("position", POSITIONS)
def test_what_is_read_stays_the_same(name, position):
    model, examples = tiny(name), with_beginning(make_examples())
    stack = find_stack(model)
    got = read_at(model, stack, examples, get_position(position), token_budget=60)
    shift = len(BEGINNING) if position in ("last-prompt", "response-mean") else 0
    for ours, theirs in zip(got.states, reference(model, stack, examples, position, shift), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("name", SHARING)
def test_a_shared_beginning_is_forwarded_once(name):
    model, examples = tiny(name), with_beginning(make_examples(24))
    counted = Counted(model)
    read_at(model, counted.stack, examples, get_position("mean"), token_budget=1)
    beginnings = len(BEGINNING) * len(examples)
    tried = 2 * (len(BEGINNING) + causal.TRIED)
    assert counted.tokens <= sum(map(len, examples)) - beginnings + tried


@pytest.mark.parametrize("name", DECODERS)
def test_tokens_behind_the_last_one_read_are_not_forwarded(name):
    model, examples = tiny(name), make_examples(24)
    counted = Counted(model)
    read_at(model, counted.stack, examples, get_position("last-prompt"), token_budget=1)
    assert counted.tokens <= 3 * len(examples) + 2 * 2 * causal.TRIED  # prompts are of three tokens
    counted.tokens = 0
    read_all(model, counted.stack, examples, [get_position("last-prompt"), get_position("last")], token_budget=1)
    assert counted.tokens == sum(map(len, examples))


def test_a_model_that_looks_ahead_is_read_whole():
    torch.manual_seed(0)
    config = tf.Gemma3TextConfig(**DECODER, use_bidirectional_attention=True, layer_types=["full_attention"] * 4)
    model = tf.Gemma3ForCausalLM(config).eval()
    stack = find_stack(model)
    examples = with_beginning(make_examples())
    with evaluation_mode(model):
        found = causal.plan_forward(model, stack, examples, [get_position("last-prompt")], False, torch.device("cpu"))
    assert found == causal.Forwarded(tuple(examples))


@pytest.mark.parametrize(("window", "shares"), [(6, False), (12, True)])
def test_sliding_windows_share_a_beginning_that_they_hold(window, shares):
    torch.manual_seed(0)
    model = tf.MistralForCausalLM(tf.MistralConfig(**DECODER, sliding_window=window)).eval()
    stack = find_stack(model)
    examples = with_beginning(make_examples())
    with evaluation_mode(model):
        found = causal.plan_forward(model, stack, examples, [get_position("last-prompt")], False, torch.device("cpu"))
    assert (found.beginning is not None) == shares
    assert sum(map(len, found.examples)) < sum(map(len, examples))
    got = read_at(model, stack, examples, get_position("mean"), token_budget=60)
    for ours, theirs in zip(got.states, reference(model, stack, examples, "mean"), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-6, rtol=2e-5)


def test_encoders_images_and_single_samples_are_left_alone():
    for name in ("bert", "t5", "llava"):
        model = tiny(name)
        examples = with_beginning(make_examples())
        stack = find_stacks(model)[0]
        found = causal.plan_forward(model, stack, examples, [get_position("mean")], False, torch.device("cpu"))
        assert found.beginning is None, name
        assert len(found.examples) == len(examples)
    assert set(CONFIGS) >= {"bert", "t5", "llava"}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_behind_the_final_norm_too(name, monkeypatch):
    model, examples = tiny(name), with_beginning(make_examples())
    stack = find_stack(model)
    forwarded = []
    watched = causal.plan_forward
    monkeypatch.setattr(
        "layersift.represent.read.plan_forward", lambda *given: forwarded.append(watched(*given)) or forwarded[0]
    )
    got = read_at(model, stack, examples, get_position("last"), post_norm_last=True)
    assert forwarded[0] != causal.Forwarded(tuple(examples)), "nothing was left out, so there is nothing to compare"
    monkeypatch.setattr(
        "layersift.represent.read.plan_forward", lambda b, s, examples, *_: causal.Forwarded(tuple(examples))
    )
    whole = read_at(model, stack, examples, get_position("last"), post_norm_last=True)
    for ours, theirs in zip(got.states, whole.states, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-5)
    assert not torch.equal(got.states[-1], got.states[-2])
