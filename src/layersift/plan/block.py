"""The cost of one block's part in a training step, measured by running that block alone on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_unflatten
from torch.utils.checkpoint import checkpoint

from layersift.plan.call import Call, empty_like, own_copy
from layersift.plan.meter import Meter
from layersift.step.strategy import hand_past


@dataclass(frozen=True)
class Role:
    """How a block takes part in a step."""

    graph: bool  # whether its forward pass builds a graph; if not, nothing of it is kept
    trained: bool = False
    entering: tuple[int, ...] = ()  # places of the arguments that a gradient goes to
    skipped: bool = False  # the gradient is handed past the block (DropBP)


@dataclass(frozen=True)
class BlockCost:
    """FLOPs and bytes of one block. Bytes count what it makes and its input of hidden states, no other arguments."""

    forward: int  # FLOPs of the forward pass
    backward: int  # FLOPs of the backward pass, with what checkpointing runs again
    forward_peak: int  # bytes
    held: int  # bytes after the forward pass, until the model's is over; the output included
    saved: int  # bytes that wait for the backward pass
    backward_peak: int  # bytes, the gradient of the output included
    entering: int  # bytes of its input of hidden states
    keeps_entering: bool  # whether these wait for the backward pass, too
    leaving: int  # bytes of its output
    gradient: int  # bytes of the gradient of its output
    differentiable: tuple[int, ...]  # places in the output of what has a gradient


def measure_block(
    block: nn.Module, call: Call, role: Role, trained: Sequence[nn.Parameter], checkpointed: bool
) -> BlockCost:
    """Run a block forward and backward as it takes part in a step.

    Args:
        block: on the meta device, in training mode; its parameters require gradients as the role says.
        trained: its parameters that do.
        checkpointed: whether the model checkpoints the block, which does not do so itself.
    """
    undo = hand_past(block, lambda: True) if role.skipped else None
    try:
        return _measure(block, call, role, trained, checkpointed)
    finally:
        if undo is not None:
            undo()
        for parameter in trained:
            parameter.grad = None


def _measure(
    block: nn.Module, call: Call, role: Role, trained: Sequence[nn.Parameter], checkpointed: bool
) -> BlockCost:
    stream, seed = call.stream(), torch.zeros((), device="meta", requires_grad=True)
    values: list[Any] = list(map(own_copy, call.inputs))
    for place in role.entering:
        values[place] = _Source.apply(seed, values[place])  # type: ignore[no-untyped-call]
    with Meter(trained) as meter:
        if stream >= 0:
            like = call.inputs[stream]
            values[stream] = _Source.apply(seed, like) if stream in role.entering else empty_like(like)  # type: ignore[no-untyped-call]
        entering, input_of = meter.now, (meter.watch(values[stream]) if stream >= 0 else lambda: None)
        args, kwargs = tree_unflatten(values, call.input_spec)
        with torch.set_grad_enabled(role.graph):
            if checkpointed and role.graph:
                output = checkpoint(block.__call__, *args, use_reentrant=False, **kwargs)
            else:
                output = block(*args, **kwargs)
        forward, forward_peak = meter.flops, meter.most
        leaves, given = tree_leaves(output), {id(value) for value in values if isinstance(value, torch.Tensor)}
        new = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and id(leaf) not in given]
        differentiable = tuple(i for i, t in enumerate(leaves) if isinstance(t, torch.Tensor) and t.requires_grad)
        leaving = sum(t.untyped_storage().nbytes() for t in new)
        roots = [t for t in new if t.requires_grad]
        gradient = sum(t.numel() * t.element_size() for t in roots)
        values = [value for place, value in enumerate(values) if place != stream]
        del args, kwargs, leaves
        held = meter.now
        if not roots:
            return BlockCost(forward, 0, forward_peak, held, 0, 0, entering, False, leaving, 0, ())
        loss = _Sink.apply(*roots)  # type: ignore[no-untyped-call]
        one = loss.nbytes
        del output, new, roots, values
        saved, keeps_entering = meter.now - one, input_of() is not None
        meter.mark()
        loss.backward()
    return BlockCost(
        forward=forward,
        backward=meter.flops - forward,
        forward_peak=forward_peak,
        held=held,
        saved=saved,
        backward_peak=meter.most - one,
        entering=entering,
        keeps_entering=keeps_entering,
        leaving=leaving,
        gradient=gradient,
        differentiable=differentiable,
    )


class _Source(torch.autograd.Function):
    """A tensor that has a gradient, and a graph behind it that keeps nothing."""

    @staticmethod
    def forward(ctx: Any, seed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return empty_like(like)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None]:
        return None, None


class _Sink(torch.autograd.Function):
    """A loss that keeps nothing of what it is of."""

    @staticmethod
    def forward(ctx: Any, *roots: torch.Tensor) -> torch.Tensor:
        ctx.shapes = [(t.shape, t.dtype) for t in roots]
        return torch.empty((), device="meta")

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in ctx.shapes)
