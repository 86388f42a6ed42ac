"""What a causal model lets us leave out, without changing what is read.

There a token's states depend on the tokens before it alone. So tokens behind the last one that is read need not be
forwarded, and what all samples begin with (the prompt's template) is forwarded once: its states are the same in every
sample, and its keys and values are put before those of each batch.

Whether a model is causal is not taken on trust: both ways are run on the beginning of one sample, and where they
differ by more than rounding, nothing is left out.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from layersift.data.examples import Example
from layersift.models.stacks import BlockStack
from layersift.represent.hooks import Done, read_blocks
from layersift.represent.positions import Position

WORTH = 0.05  # of all tokens; less is not worth the trial
TRIED = 16  # tokens on which both ways are compared

Inputs = dict[str, Any]
log = logging.getLogger(__name__)


class _Shared(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values (1, heads, P, d) put before those of every batch, which are not kept."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = len(key_states)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


@dataclass(frozen=True)
class Beginning:
    """What all samples begin with, once it has passed through the model."""

    tokens: int
    states: tuple[torch.Tensor, ...]  # R_0 ... R_M, and the final norm's output where the pass went so far; (1, P, d)
    argument: str  # the backbone's name for it
    cache: Cache

    def rest(self, members: Sequence[Example]) -> list[Example]:
        """The samples without it."""
        return [Example(e.input_ids[self.tokens :], e.content[self.tokens :]) for e in members]

    def inputs(self, batch: Inputs) -> Inputs:
        """Model inputs of the samples' rests, made such that they follow it."""
        mask = batch["attention_mask"]
        before = mask.new_ones(len(mask), self.tokens)
        return batch | {"attention_mask": torch.cat([before, mask], dim=1), self.argument: self.cache}

    def whole(self, place: int, rest: torch.Tensor) -> torch.Tensor:
        """States (B, P + T, d) of whole samples at R_place, from those of their rests (B, T, d)."""
        return torch.cat([self.states[place].expand(len(rest), -1, -1), rest], dim=1)


@dataclass(frozen=True)
class Forwarded:
    """What has to be forwarded."""

    examples: tuple[Example, ...]
    beginning: Beginning | None = None


def plan_forward(
    backbone: nn.Module,
    stack: BlockStack,
    examples: Sequence[Example],
    positions: Sequence[Position],
    post_norm_last: bool,
    device: torch.device,
    blocks: Sequence[nn.Module] | None = None,
) -> Forwarded:
    """What has to be forwarded to read the positions: everything, unless the model is causal and there is a gain.

    To be called in evaluation mode.

    Args:
        blocks: the stack's, where its paths are not those of ``backbone`` but of the model around it.
    """
    blocks = stack.blocks(backbone) if blocks is None else blocks
    everything = Forwarded(tuple(examples))
    first = examples[0]
    text = bool(first.input_ids) and first.image is None and first.target is None and not first.types
    if stack.tower not in ("decoder", "language") or not text or len(examples) < 2:
        return everything
    read_to = [max(max(p.choose(e), default=len(e) - 1) for p in positions) + 1 for e in examples]
    shared = min(_shared_beginning(examples), min(read_to) - 1)
    total = sum(map(len, examples))
    cutting = total - sum(read_to) >= WORTH * total
    sharing = _is_worth(shared, examples) and cache_argument(backbone) is not None
    if not cutting and not sharing:
        return everything
    try:
        causal, beginning = _try(backbone, blocks, examples, shared if sharing else 0, post_norm_last, device)
    except Exception as error:  # whatever a model makes of this, the ordinary way is open
        log.info("all tokens are forwarded: the trial of leaving some out failed (%s)", error)
        return everything
    if not causal or (sharing and beginning is None):
        log.info("%s: its states differ where tokens are left out, so more are forwarded", type(backbone).__name__)
    if cutting and causal:
        examples = [e.cut(end) for e, end in zip(examples, read_to, strict=True)]
    return Forwarded(tuple(examples), beginning)


def shared_opening(
    backbone: nn.Module, blocks: Sequence[nn.Module], examples: Sequence[Example], device: torch.device
) -> tuple[int, str | None]:
    """How many tokens all samples begin with, where passing them once gives the same states; else 0, and why not.

    To be called in evaluation mode.

    Args:
        blocks: the lowest ones, whose states count.
        examples: of text alone, for a decoder.
    """
    tokens = min(_shared_beginning(examples), min(map(len, examples)) - 1)
    if not _is_worth(tokens, examples):
        return 0, f"the rows have only their first {tokens} tokens in common"
    if cache_argument(backbone) is None:
        return 0, "the model takes no keys and values of earlier tokens"
    try:
        causal, beginning = _try(backbone, blocks, examples, tokens, False, device)
    except Exception as error:  # whatever a model makes of this, the ordinary way is open
        return 0, f"the trial of it failed ({error})"
    if not causal:
        return 0, "a token's states depend on the tokens behind it"
    return (0, "its states are others where rows go on behind it") if beginning is None else (tokens, None)


def _is_worth(shared: int, examples: Sequence[Example]) -> bool:
    return shared * (len(examples) - 1) >= WORTH * sum(map(len, examples))


def _shared_beginning(examples: Sequence[Example]) -> int:
    """How many tokens all samples begin with in common."""
    least, greatest = min(e.input_ids for e in examples), max(e.input_ids for e in examples)
    pairs = zip(least, greatest, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(least), len(greatest)))


def cache_argument(backbone: nn.Module) -> str | None:
    """What the backbone calls the keys and values of earlier tokens; transformers renamed it in 5.24."""
    known = inspect.signature(backbone.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in known), None)


def _try(
    backbone: nn.Module,
    blocks: Sequence[nn.Module],
    examples: Sequence[Example],
    shared: int,
    post_norm_last: bool,
    device: torch.device,
) -> tuple[bool, Beginning | None]:
    """Whether the model is causal, and the samples' shared beginning if going on behind it gives the same states."""
    shortest = min(examples, key=len).input_ids
    trial = shortest[: shared + TRIED] if shared else shortest[: 2 * TRIED]
    end = shared or len(trial) // 2

    def pass_over(tokens: Sequence[int], inputs: Callable[[Inputs], Inputs], **more: Any) -> tuple[torch.Tensor, ...]:
        ids = torch.tensor([list(tokens)], device=device)
        states: dict[int, torch.Tensor] = {}
        output = None
        with suppress(Done), read_blocks(blocks, states.__setitem__, stop=not post_norm_last):
            output = backbone(**inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)}), **more)
        final = () if output is None else (output.last_hidden_state,)
        return (*(states[i] for i in range(len(blocks) + 1)), *final)

    whole = pass_over(trial, dict, use_cache=False)
    argument = cache_argument(backbone) if shared else None
    if argument is None:
        states = pass_over(trial[:end], dict, use_cache=False)
        return same_states(states, [w[:, :end] for w in whole]), None
    kept = new_cache(backbone)
    states = pass_over(trial[:end], dict, use_cache=True, **{argument: kept})
    if not same_states(states, [w[:, :end] for w in whole]):
        return False, None
    shared_cache = put_before_batches(kept, len(blocks), end)
    if shared_cache is None:
        return True, None
    beginning = Beginning(end, states, argument, shared_cache)
    rest = pass_over(trial[end:], beginning.inputs, use_cache=True)
    return True, beginning if same_states(rest, [w[:, end:] for w in whole]) else None


def new_cache(backbone: Any) -> Any:
    """An empty cache of keys and values for a pass over the tokens that are shared."""
    return DynamicCache(config=backbone.config.get_text_config())


def put_before_batches(kept: Any, blocks: int, tokens: int) -> Cache | None:
    """What the lowest blocks have kept of the shared tokens, to be put before the keys and values of any batch.

    Returns:
        None where a block keeps something else than the keys and values of all these tokens.
    """
    layers = kept.layers[:blocks]
    if len(layers) < blocks or not all(_holds(layer, tokens) for layer in layers):
        return None
    return Cache(layers=[_Shared(layer.keys, layer.values) for layer in layers])


def _holds(layer: Any, tokens: int) -> bool:
    """Whether a layer's cache is the keys and values of so many tokens: no recurrent state, no window that is full."""
    kept = type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.keys is not None
    return kept and bool(layer.keys.shape[-2] == tokens)


def same_states(states: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Whether every token's states are the same to rounding."""
    tolerance = math.sqrt(torch.finfo(expected[0].dtype).eps)
    return all(
        bool(((a - b).float().norm(dim=-1) <= tolerance * b.float().norm(dim=-1)).all())
        for a, b in zip(states, expected, strict=True)
    )
