"""Where checkpointing needs an input with a gradient, and a loss without rows or with a head alone to train."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from layersift.step import losses
from layersift.step.callback import FrozenPrefix
from layersift.step.losses import ResponseLoss, _chunked
from layersift.step.prefix import _begins_graph
from tiny import tiny


class Block(nn.Module):
    def __init__(self, checkpointing, **keywords):
        super().__init__()
        self.gradient_checkpointing = checkpointing
        self._gradient_checkpointing_func = functools.partial(torch.utils.checkpoint.checkpoint, **keywords)

    def forward(self, states):
        return states


@pytest.mark.parametrize("given", [lambda states: states, lambda states: (states, "cache")], ids=["bare", "tuple"])
@pytest.mark.parametrize(
    ("checkpointing", "keywords", "begins"),
    [
        (True, {"use_reentrant": True}, True),
        (True, {}, True),  # PyTorch's own default is the reentrant way
        (True, {"use_reentrant": False}, False),
        (False, {"use_reentrant": True}, False),
    ],
)
def test_only_reentrant_checkpointing_gets_states_with_a_gradient(checkpointing, keywords, begins, given):
    last, states = Block(False), torch.ones(2, 3)
    restore = _begins_graph(last, Block(checkpointing, **keywords))
    found = last(given(states))
    first = found[0] if isinstance(found, tuple) else found
    assert first.requires_grad == begins
    assert torch.equal(first, states)
    assert not states.requires_grad
    assert not isinstance(found, tuple) or found[1:] == ("cache",)
    assert last("no tensor") == "no tensor"
    with torch.no_grad():
        assert last(states) is states
    graph = states.clone().requires_grad_() * 2
    assert last(graph) is graph
    restore()
    assert last(states) is states


def test_before_a_block_that_does_not_checkpoint_states_are_as_they_are():
    last, states = Block(False), torch.ones(2, 3)
    restore = _begins_graph(last, nn.Identity())
    assert last(states) is states
    restore()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [True, False])
def test_no_rows_have_a_loss_of_zero_in_float32(dtype, frozen):
    head = nn.Linear(3, 5, bias=False).to(dtype).requires_grad_(not frozen)
    rows = torch.zeros(0, 3, dtype=dtype, requires_grad=True)
    found = _chunked(head, rows, torch.zeros(0, dtype=torch.long))
    assert (found.item(), found.dtype, found.shape) == (0.0, torch.float32, ())


@pytest.mark.parametrize("chunk", [1, 2, 5, 512])
@pytest.mark.parametrize("below", [True, False], ids=["rows too", "head alone"])
def test_a_head_that_is_trained_alone_gets_its_gradient_too(chunk, below, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_(below)
    wanted = torch.tensor([0, 3, 1, 4, 4])
    head = nn.Linear(3, 5, bias=False).double()
    loss = cross_entropy(head(rows), wanted, reduction="sum")
    parameters = [head.weight, *([rows] if below else [])]
    expected = torch.autograd.grad(loss, parameters)
    found = _chunked(head, rows, wanted)
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    for gradient, value in zip(torch.autograd.grad(found, parameters), expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_single_token_is_that_tokens_loss():
    model = tiny("llama")
    ids = torch.randint(5, 100, (2, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[1, 3] = ids[1, 3]
    with torch.no_grad():
        wanted = -torch.log_softmax(model(ids).logits[1, 2].double(), dim=-1)[ids[1, 3]].item()
    loss = ResponseLoss()
    for items, share in ((None, 1), (None, 1), (4, 4)):
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        assert loss(model, inputs, items).item() == pytest.approx(wanted / share, rel=1e-5)


def test_before_a_training_no_block_runs_without_a_graph():
    assert FrozenPrefix().blocks == 0
    assert FrozenPrefix().dropout is True
    assert FrozenPrefix(False).dropout is False
