"""Read the representations R_0 ... R_M of a sample of data in one forward pass of the backbone.

Hooks on the blocks keep one row a sample and block; the pass is cut off behind the last block, so neither the final
norm nor any head runs, in any architecture. R_i is the raw output of a block: `output_hidden_states` would give the
last one after the final norm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from layersift.errors import ModelError
from layersift.load.blocks import BlockStack
from layersift.load.examples import Example, batches_by_tokens, collate
from layersift.represent.positions import Position, read_position, token_weights

Progress = Callable[[int], None]
Read = Callable[[torch.Tensor], torch.Tensor]

TOKEN_BUDGET = 4096


@dataclass(frozen=True)
class Representations:
    """R_0 ... R_M at one position: ``states[i]`` is (n, d), float32, on the CPU, row j belonging to sample j."""

    states: tuple[torch.Tensor, ...]
    dtype: torch.dtype  # of the model that produced them; its rounding limits what counts as variation
    seconds: float
    tokens: int

    @property
    def num_layers(self) -> int:
        """M; layer i (from 0) maps ``states[i]`` to ``states[i + 1]``."""
        return len(self.states) - 1


class _Done(Exception):  # noqa: N818 - not an error: it ends a forward pass that has nothing left to give
    """Raised by the last hook of a pass."""


def _hidden_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    for value in (kwargs.get("hidden_states"), *args, *kwargs.values()):
        if torch.is_tensor(value) and value.is_floating_point() and value.ndim == 3:
            return value
    raise ModelError("the first block received no hidden states of shape (batch, tokens, width)")


def _views(members: Sequence[Example], stack: BlockStack, tokens: int) -> list[Example]:
    """The samples as this stack sees them: an encoder-decoder's decoder reads the targets, a tower its own tokens."""
    if stack.tower == "decoder" and members[0].target is not None:
        members = [e.decoder_side() for e in members]
    own = not members[0].input_ids or max(len(e) for e in members) != tokens
    return [e.seen_as(tokens) for e in members] if own else list(members)


def _inputs(
    backbone: Any, stack: BlockStack, members: Sequence[Example], pad_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    batch = {name: value.to(device) for name, value in collate(members, pad_id).items()}
    labels = batch.pop("labels", None)
    if labels is not None and stack.tower == "decoder":
        if not hasattr(backbone, "prepare_decoder_input_ids_from_labels"):
            raise ModelError(f"{type(backbone).__name__} has no head that writes; its decoder cannot read responses")
        batch["decoder_input_ids"] = backbone.prepare_decoder_input_ids_from_labels(labels=labels)
    return batch


def _hidden_out(output: Any) -> torch.Tensor:
    first = output[0] if isinstance(output, tuple | list) else output
    if not torch.is_tensor(first) or first.ndim != 3:
        raise ModelError("a block returned no hidden states of shape (batch, tokens, width)")
    return first


@contextmanager
def _reading(blocks: Sequence[nn.Module], read: Read, rows: list[list[torch.Tensor]], stop: bool) -> Iterator[None]:
    """While active, a forward pass appends ``read(R_i)`` to ``rows[i]`` and, if ``stop``, ends behind the last block.

    All hooks are removed on the way out, also after an exception.
    """

    def before_first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows[0].append(read(_hidden_in(args, kwargs)))

    def after(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            rows[layer + 1].append(read(_hidden_out(output)))
            if stop and layer == len(blocks) - 1:
                raise _Done

        return hook

    handles = [blocks[0].register_forward_pre_hook(before_first, with_kwargs=True)]
    handles += [block.register_forward_hook(after(i)) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off and no graph; every module's own mode is restored."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def represent(
    model: nn.Module,
    stack: BlockStack,
    examples: Sequence[Example],
    position: Position,
    *,
    pad_id: int = 0,
    token_budget: int = TOKEN_BUDGET,
    post_norm_last: bool = False,
    progress: Progress | None = None,
) -> Representations:
    """R_0 ... R_M of ``examples`` at ``position``, in one forward pass.

    Args:
        pad_id: fills up the shorter samples of a batch; masked, so its value does not matter.
        token_budget: padded tokens in one batch; sets the memory needed, not the result.
        post_norm_last: read R_M from the backbone's ``last_hidden_state``, that is after the final norm where the
            architecture has one, as the published scripts do.
        progress: called with the number of samples done after each batch.

    Raises:
        DataError: a sample has no token at the position.
        ModelError: the blocks do not exchange hidden states of shape (B, T, d), or did not all run.
    """
    started = time.perf_counter()
    blocks = stack.blocks(model)
    if post_norm_last and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError("the published scripts know encoders and decoders, not both in one; leave --compat paper away")
    backbone = getattr(model, "base_model", model) if post_norm_last else model
    parameter = next(p for p in blocks[0].parameters() if p.is_floating_point())
    states: list[torch.Tensor] = []
    batches = batches_by_tokens([len(e) for e in examples], token_budget)
    with evaluation_mode(model):
        for batch in batches:
            members = [examples[i] for i in batch]
            rows = _forward(backbone, stack, blocks, members, position, pad_id, parameter.device, post_norm_last)
            if not states:
                states = [torch.empty(len(examples), row.shape[1]) for row in rows]
            for state, row in zip(states, rows, strict=True):
                state[batch] = row.cpu()
            if progress is not None:
                progress(len(batch))
    return Representations(tuple(states), parameter.dtype, time.perf_counter() - started, sum(len(e) for e in examples))


def _forward(
    backbone: nn.Module,
    stack: BlockStack,
    blocks: Sequence[nn.Module],
    members: Sequence[Example],
    position: Position,
    pad_id: int,
    device: torch.device,
    post_norm_last: bool,
) -> list[torch.Tensor]:
    """One batch: M + 1 tensors (B, d)."""
    inputs = _inputs(backbone, stack, members, pad_id, device)
    rows: list[list[torch.Tensor]] = [[] for _ in range(len(blocks) + 1)]
    output = None

    @lru_cache(maxsize=1)
    def weights(tokens: int) -> torch.Tensor:
        return token_weights(position, _views(members, stack, tokens)).to(device)

    def read(hidden: torch.Tensor) -> torch.Tensor:
        return read_position(hidden, weights(hidden.shape[1]))

    with suppress(_Done), _reading(blocks, read, rows, stop=not post_norm_last):
        output = backbone(**inputs, **_no_cache(backbone))
    if any(len(row) != 1 for row in rows):
        counts = [len(row) for row in rows]
        raise ModelError(f"expected each block to run once in a forward pass; inputs and outputs seen: {counts}")
    if post_norm_last and output is not None:
        rows[-1] = [read(output.last_hidden_state)]
    return [row[0] for row in rows]


def _no_cache(backbone: nn.Module) -> dict[str, Any]:
    """Keys and values are needed for generation only; keeping them would cost memory that grows with the text."""
    config = getattr(backbone, "config", None)
    return {"use_cache": False} if hasattr(config, "use_cache") else {}
