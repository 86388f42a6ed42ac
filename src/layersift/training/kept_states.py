"""Whether a training keeps what its frozen prefix gives, and where."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from layersift.config.strategy import parse_strategy
from layersift.config.train import TrainSettings
from layersift.load.examples import Example
from layersift.load.models import LoadedModel
from layersift.step.prefix import cut_of, prefix_dropouts
from layersift.step.prefix_cache import PrefixCache, cache_key, fits_memory
from layersift.step.strategy import trained_in_the_end

log = logging.getLogger(__name__)


def keepable_blocks(
    adapted: Any, settings: TrainSettings, examples: Sequence[Example], *, seq2seq: bool
) -> tuple[int, str | None]:
    """How many blocks lie below the first trained one in the end, whose output might be kept; and why it cannot be.

    None without a reason where there is no such block, or where keeping is off.
    """
    strategy = parse_strategy(settings.strategy)
    text = bool(examples[0].input_ids) and examples[0].image is None and not seq2seq
    if not text or settings.prefix_cache == "off" or not strategy.keeps_prefix:
        return 0, None
    with trained_in_the_end(adapted, strategy):
        blocks = cut_of(adapted)
        noise = prefix_dropouts(adapted) if blocks and settings.prefix_dropout else []
    if noise:
        return 0, f"{type(noise[0][0]).__name__} draws random numbers there ({noise[0][1]} {noise[0][2]:g})"
    if blocks and getattr(adapted.config.get_text_config(), "num_kv_shared_layers", 0):
        return 0, "blocks above use keys and values of blocks below"
    return blocks, None


def keeps_states(adapted: Any, settings: TrainSettings, examples: Sequence[Example], *, seq2seq: bool) -> bool:
    """Whether later epochs of a training begin at its first trained block."""
    blocks, _ = keepable_blocks(adapted, settings, examples, seq2seq=seq2seq)
    return bool(blocks) and _are_of_use(adapted, settings, examples)


def _are_of_use(adapted: Any, settings: TrainSettings, examples: Sequence[Example]) -> bool:
    """Whether there is a later epoch, and memory to keep all states until then."""
    first = next(p for p in adapted.parameters() if p.is_floating_point())
    width = int(adapted.config.get_text_config().hidden_size)
    return settings.epochs > 1 and fits_memory(examples, width, first.dtype)


def prefix_cache(
    adapted: Any, settings: TrainSettings, loaded: LoadedModel, examples: Sequence[Example], *, seq2seq: bool
) -> PrefixCache | None:
    """Where what the frozen prefix gives is kept; None where there is no use in it, or it would not be exact."""
    shared = settings.prefix_cache not in ("auto", "off")
    blocks, why = keepable_blocks(adapted, settings, examples, seq2seq=seq2seq)
    if why is not None:
        log.log(logging.WARNING if shared else logging.INFO, "what the frozen blocks give is not kept: %s", why)
    if not blocks:
        return None
    if shared and parse_strategy(settings.strategy).rises:
        # What is frozen has been trained here, and serves no other training.
        log.warning("where the cut rises, what the frozen blocks give is kept in memory, not in a directory")
    elif shared:
        first = next(p for p in loaded.model.parameters() if p.is_floating_point())
        computed = (
            str(first.dtype),
            str(loaded.source.quantization),
            str(settings.precision),
            str(loaded.model.config.get_text_config()._attn_implementation),
            first.device.type,
            torch.__version__,
            transformers.__version__,
        )
        return PrefixCache(Path(settings.prefix_cache) / cache_key(loaded.revision, blocks, computed, examples))
    return PrefixCache() if _are_of_use(adapted, settings, examples) else None
