"""Representations against transformers' own hidden states, and what must not change them."""

import pytest
import torch

from layersift.data.examples import Example, batches_by_tokens, collate
from layersift.errors import DataError, LayersiftError, ModelError
from layersift.models.stacks import find_stack
from layersift.represent.positions import POSITIONS, get_position
from states import TEXT, make_examples, reference
from tiny import read_at, tiny


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("position", POSITIONS)
def test_equals_hidden_states_of_single_unpadded_samples(name, position):
    model, examples = tiny(name), make_examples()
    stack = find_stack(model)
    got = read_at(model, stack, examples, get_position(position), token_budget=40)
    expected = reference(model, stack, examples, position)
    assert got.num_layers == stack.num_layers
    for ours, theirs in zip(got.states, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-6, rtol=2e-5)


def test_batch_size_and_order_do_not_matter():
    model, examples = tiny("llama"), make_examples(20)
    stack, mean = find_stack(model), get_position("mean")
    one = read_at(model, stack, examples, mean, token_budget=1)
    big = read_at(model, stack, examples[::-1], mean, token_budget=10_000)
    for a, b in zip(one.states, big.states, strict=True):
        torch.testing.assert_close(a, b.flip(0), atol=1e-6, rtol=1e-5)


def test_the_head_and_the_final_norm_do_not_run_and_nothing_is_left_behind():
    model = tiny("llama").train()
    ran = []
    for part in (model.lm_head, model.model.norm):
        part.register_forward_hook(lambda m, _a, _o: ran.append(type(m).__name__))
    model.model.layers[1].eval()
    stack = find_stack(model)
    read_at(model, stack, make_examples(), get_position("last"))
    assert ran == []
    assert model.training
    assert not model.model.layers[1].training
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in stack.blocks(model))


def test_hooks_are_removed_after_a_failure():
    model, stack = tiny("bert"), find_stack(tiny("bert"))
    bad = [Example((1,) * 500, (True,) * 500)]  # more tokens than there are positions
    with pytest.raises(ModelError, match="up to 500 tokens"):
        read_at(model, stack, bad, get_position("mean"))
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in stack.blocks(model))


def test_post_norm_last_reads_the_backbones_last_hidden_state():
    model, examples = tiny("gemma"), make_examples()
    stack = find_stack(model)
    raw = read_at(model, stack, examples, get_position("last"))
    paper = read_at(model, stack, examples, get_position("last"), post_norm_last=True)
    for a, b in zip(raw.states[:-1], paper.states[:-1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        last = model.model(torch.tensor([examples[0].input_ids])).last_hidden_state[0, -1]
    torch.testing.assert_close(paper.states[-1][0], last, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(raw.states[-1], paper.states[-1])


def test_batches_keep_the_budget_and_every_sample():
    lengths = [3, 50, 7, 7, 7, 1, 20, 20]
    batches = batches_by_tokens(lengths, 40)
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 40 for b in batches)
    assert batches[:3] == [[1], [6, 7], [2, 3, 4, 0, 5]]


def test_collate_pads_on_the_right():
    batch = collate([Example((1, 2, 3), (True,) * 3), Example((4,), (True,))], pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_position_errors():
    with pytest.raises(LayersiftError, match="Did you mean 'last-content'"):
        get_position("last-contents")
    model = tiny("bert")
    stack = find_stack(model)
    with pytest.raises(DataError, match="needs a task with responses"):
        read_at(model, stack, make_examples(response=False), get_position("response-mean"))
    blank = [Example((5, 6), (False, False))]
    with pytest.raises(DataError, match="2 tokens has none at position 'last-content'"):
        read_at(model, stack, blank, get_position("last-content"))
