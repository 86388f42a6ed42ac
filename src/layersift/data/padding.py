"""Batches whose samples do not depend on one another: of equal lengths, where a model does not mask all padding.

ConvBERT's convolutions and FNet's Fourier transform look beyond a sample's end; Switch's experts have room for so many
tokens of a batch and no more. Which models do such things is tried.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch

from layersift.data.examples import Example, Tensors, batches_by_tokens, collate
from layersift.data.readable import OF_MODELS
from layersift.models.architecture import no_cache

log = logging.getLogger(__name__)
SHORT, LONG = (7, 4), 12  # tokens of the samples that it is tried with, at most; Funnel pools by pairs, and not by few
TOLERANCE = 1e-3  # of the largest value, or the root of the type's precision where that is coarser: in bfloat16 another
# length of padding rounds otherwise (SmolLM2: 0.0013); an unmasked neighbour is far above


Say = Callable[[Tensors], torch.Tensor]  # of model inputs, what is read of them, the first sample's first


def independent_batches(
    model: Any, examples: Sequence[Example], lengths: Sequence[int], budget: int, pad_id: int, say: Say | None = None
) -> list[list[int]]:
    """Indices of samples in batches of a token budget; see :func:`layersift.data.examples.batches_by_tokens`.

    Samples of different lengths are not put together where the model would let one change what it says of another.
    To be called in evaluation mode.

    Args:
        say: what the model says of a batch, (B, ...) or (B, T, ...); None: its logits, or the states that it returns.
    """
    batches = batches_by_tokens(lengths, budget)
    if len(examples) < 2 or all(len(batch) == 1 for batch in batches):
        return batches
    heeds = find_neighbour_effects(model, examples, pad_id, say or partial(_logits, model))
    if heeds == "none":
        return batches
    kind = type(model).__name__
    if heeds == "all":
        log.warning("%s lets samples of a batch change one another; each is read alone", kind)
        return [[index] for batch in batches for index in batch]
    log.warning("%s does not mask all padding; only samples of one length share a batch", kind)
    of_length: dict[tuple[int, int], list[int]] = {}
    for index, example in enumerate(examples):
        of_length.setdefault((len(example), len(example.target or ())), []).append(index)
    same_length = []
    for length in sorted(of_length, reverse=True):
        those = of_length[length]
        size = max(1, budget // max(1, lengths[those[0]]))
        same_length += [those[i : i + size] for i in range(0, len(those), size)]
    return same_length


def find_neighbour_effects(
    model: Any, examples: Sequence[Example], pad_id: int, say: Say
) -> Literal["none", "longer", "all"]:
    """Which neighbours in a batch change what a model says of a short text, tried with some first tokens."""
    ordered = sorted(examples, key=len)
    if not ordered[0].input_ids or ordered[0].image is not None or next(model.parameters()).device.type == "meta":
        return "none"
    heeded = {_neighbour_effect(model, ordered, tokens, pad_id, say) for tokens in SHORT}
    return next(kind for kind in ("all", "longer", "none") if kind in heeded)


def _neighbour_effect(
    model: Any, ordered: Sequence[Example], tokens: int, pad_id: int, say: Say
) -> Literal["none", "longer", "all"]:
    """Tried with the first tokens of the shortest example beside those of the longest; none of a length that fails."""
    short, long = ordered[0], ordered[-1]
    first = cut_example(short, min(tokens, len(long)))

    def said(*members: Example) -> torch.Tensor:
        device = next(model.parameters()).device
        inputs = {name: value.to(device) for name, value in collate(members, pad_id).items()}
        with torch.no_grad():
            return say(inputs)[0]

    try:
        alone = said(first)
        if _differs(alone, said(first, cut_example(long, len(first)))):
            return "all"
        return "longer" if _differs(alone, said(first, cut_example(long, LONG))) else "none"
    except OF_MODELS:  # Funnel reads no four tokens; where all fail the pass itself is going to say what is wrong
        return "none"


def _differs(alone: torch.Tensor, beside: torch.Tensor) -> bool:
    tolerance = max(TOLERANCE, math.sqrt(torch.finfo(alone.dtype).eps))
    alone, beside = alone.float(), beside[: len(alone)].float()
    return bool((alone - beside).abs().max() > tolerance * alone.abs().max().clamp_min(1e-6))


def cut_example(example: Example, tokens: int) -> Example:
    """First tokens, without what a loss is taken on."""
    types = {name: values[:tokens] for name, values in example.types.items()}
    target = None if example.target is None else example.target[:1]
    return Example(example.input_ids[:tokens], example.content[:tokens], types=types, target=target)


def _logits(model: Any, inputs: Tensors) -> torch.Tensor:
    output = model(**inputs, **no_cache(model))
    logits: torch.Tensor = output[0] if getattr(output, "logits", None) is None else output.logits
    return logits
