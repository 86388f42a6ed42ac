"""What a model costs around its blocks: embeddings, head and loss, measured with the blocks left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from layersift.adapt.store import head_parameters
from layersift.plan.blocks import MeasuredBlocks, Role, checkpointing, without_values
from layersift.plan.call import empty_like, replaced_forward
from layersift.plan.meter import Meter
from layersift.plan.training import LABELLED, StepSize, step_inputs, step_loss

EMBEDDINGS = -1  # stands for what comes before the first block, where a gradient goes to that

# The hooks under which a checkpoint runs a block; torch 2.6 does not tell, where each block counts as checkpointed.
SAVING = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


@dataclass
class Frame:
    """A step without its blocks: FLOPs, and bytes at each block's place and between them."""

    flops: int = 0
    forward_flops: list[int] = field(default_factory=list)  # from the first block's place to each block's
    forward: list[tuple[int, int]] = field(default_factory=list)  # at each block: the peak since the one before, now
    head_peak: int = 0  # bytes, from behind the last block to the end of the model's forward pass
    loss_peak: int = 0  # bytes, from there to the loss
    backward: dict[int, tuple[int, int]] = field(default_factory=dict)  # likewise, of the blocks that have a graph
    last_peak: int = 0  # bytes, behind the last block's backward pass
    holds: set[int] = field(default_factory=set)  # blocks whose input outlives their forward pass
    holds_on: set[int] = field(default_factory=set)  # blocks whose input lives until the loss
    wiring: list[dict[int, frozenset[int]]] = field(default_factory=list)  # by block and place of the argument, whose
    # outputs a gradient to it goes on to: blocks, or EMBEDDINGS
    checkpointed: bool = False  # whether the model checkpoints blocks, which do not do so themselves


def measure_frame(blocks: MeasuredBlocks, size: StepSize, graphs: Sequence[bool]) -> Frame:
    """Run a step in which blocks only make up what they give.

    Args:
        graphs: whether each block has a graph.

    Raises:
        ModelError: the model does not run without weights.
    """
    model, calls = blocks.plain.model, blocks.calls(size)
    differentiable = [
        blocks.cost(
            blocks.plain,
            place,
            Role(True, entering=(call.stream(),) if call.stream() >= 0 else ()),
            replace(size, checkpointing=False),
            False,
        ).differentiable
        for place, call in enumerate(blocks.calls(replace(size, checkpointing=False)))
    ]
    inputs = step_inputs(model, size)
    heads = set(head_parameters(model)) if size.kind in LABELLED else set()
    head = [parameter for name, parameter in model.named_parameters() if name in heads]
    frame, meter = Frame(), Meter(head)
    seed = torch.zeros((), device="meta", requires_grad=True)
    begun: list[int] = []
    watched: dict[int, Callable[[], Any]] = {}

    def stand_in(place: int, forward: Any, args: Any, kwargs: Any) -> Any:
        begun.append(meter.flops)
        frame.forward_flops.append(meter.flops - begun[0])
        frame.forward.append((meter.mark(), meter.level()))
        frame.holds |= {at for at in list(watched)[-1:] if watched[at]() is not None}
        frame.checkpointed |= size.checkpointing if SAVING is None else SAVING(True) is not None
        tensors = [(at, t) for at, t in enumerate(tree_leaves((args, kwargs))) if isinstance(t, torch.Tensor)]
        entering = {at: tensor for at, tensor in tensors if tensor.requires_grad}
        frame.wiring.append({at: frozenset(_behind(tensor)) for at, tensor in entering.items()})
        made: dict[int, torch.Tensor] = {}
        call, stream = calls[place], calls[place].stream()
        for at, tensor in tensors:
            if at == stream:
                watched[place] = meter.watch(tensor)
        if graphs[place]:
            places = [at for at in differentiable[place] if isinstance(call.outputs[at], torch.Tensor)]
            kept = [tensor for at, tensor in tensors if at != stream]
            like = [call.outputs[at] for at in places]
            outputs = _StandIn.apply(frame, meter, place, kept, like, seed, *entering.values())  # type: ignore[no-untyped-call]
            made = dict(zip(places, outputs, strict=True))
        return call.made_up(args, kwargs, lambda at, like: made[at] if at in made else empty_like(like))

    def end(*given: Any) -> None:
        frame.head_peak = meter.mark()

    for parameter in head:
        parameter.requires_grad_()
    ends = model.register_forward_hook(end)
    try:
        with (
            without_values(blocks.name),
            checkpointing(model) if size.checkpointing else nullcontext(),
            replaced_forward(blocks.plain.modules, stand_in),
            meter,
        ):
            for block in blocks.plain.modules:  # what stands in for them is not checkpointed
                if getattr(block, "gradient_checkpointing", False):
                    block.gradient_checkpointing = False  # type: ignore[assignment]  # a flag, not a module
            loss = step_loss(model, inputs, size.kind)
            frame.loss_peak = meter.mark()
            frame.holds_on = {place for place, alive in watched.items() if alive() is not None}
            torch.autograd.backward(loss)
            frame.last_peak = meter.mark()
    finally:
        ends.remove()
        for parameter in head:
            parameter.requires_grad_(False)
            parameter.grad = None
    frame.flops = meter.flops
    return frame


class _StandIn(torch.autograd.Function):
    """What a block gives and takes, with nothing between."""

    @staticmethod
    def forward(
        ctx: Any,
        frame: Frame,
        meter: Meter,
        place: int,
        kept: list[torch.Tensor],
        like: list[torch.Tensor],
        seed: torch.Tensor,
        *entering: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.frame, ctx.meter, ctx.place = frame, meter, place
        ctx.kept, ctx.entering = kept, [(t.shape, t.dtype) for t in entering]
        return tuple(map(empty_like, like))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.frame.backward[ctx.place] = ctx.meter.mark(), ctx.meter.level()
        ctx.kept = None
        made = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in ctx.entering]
        return (None,) * 6 + tuple(made)


def _behind(tensor: torch.Tensor) -> Iterator[int]:
    """The blocks whose outputs a tensor is made of, as far as it has a gradient; EMBEDDINGS for anything else."""
    if tensor.grad_fn is None:
        yield EMBEDDINGS
        return
    seen: set[Any] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if getattr(type(node), "_forward_cls", None) is _StandIn:
            yield node.place
        elif not node.next_functions:
            yield EMBEDDINGS
        else:
            waiting += [further for further, _ in node.next_functions if further is not None]
