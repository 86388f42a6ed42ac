"""Whether a training keeps what its frozen prefix gives, and where; and whether that computes a shared prompt once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from layersift.compat import attention_of
from layersift.config.train import TrainSettings, parse_strategy
from layersift.data.examples import OF_MODELS, Example, collate, cut_example
from layersift.models.load import LoadedModel
from layersift.models.stacks import find_stacks, no_cache
from layersift.processes import several
from layersift.represent.causal import shared_opening
from layersift.represent.hooks import evaluation_mode, execution_device
from layersift.step.activation_cache import ActivationCache, cache_key, fits_memory
from layersift.step.prefix import plain_model, prefix_blocks, why_not_kept
from layersift.step.shared_prompt import SharedPrompt
from layersift.step.strategy import trained_in_the_end

log = logging.getLogger(__name__)

TRIED = 8  # tokens


def keepable_blocks(
    adapted: Any, settings: TrainSettings, examples: Sequence[Example], *, seq2seq: bool
) -> tuple[int, str | None]:
    """How many blocks lie below the first trained one in the end, whose output might be kept; and why it cannot be.

    None without a reason where there is no such block, or where keeping is off.
    """
    if settings.activation_cache == "off":
        return 0, None
    frozen, why = _steady_blocks(adapted, settings, examples, seq2seq=seq2seq)
    return len(frozen), why


def _steady_blocks(
    adapted: Any, settings: TrainSettings, examples: Sequence[Example], *, seq2seq: bool
) -> tuple[list[nn.Module], str | None]:
    """The blocks below the first trained one in the end, where what they give for a row stays the same; or why not."""
    strategy = parse_strategy(settings.strategy)
    text = bool(examples[0].input_ids) and examples[0].image is None and not seq2seq
    if not text or not strategy.keeps_prefix:
        return [], None
    with trained_in_the_end(adapted, strategy):
        frozen = prefix_blocks(adapted)
        why = why_not_kept(adapted, settings.prefix_dropout) if frozen else None
    if why is not None:
        return [], why
    if frozen and (why := _unlike_a_chain(adapted, frozen, examples[0])):
        return [], why
    return frozen, None


def _unlike_a_chain(adapted: Any, frozen: Sequence[nn.Module], example: Example) -> str | None:
    """Why one tensor (T, d) a sample does not say what leaves the prefix, tried with the first tokens of an example."""
    seen: dict[nn.Module, list[Any]] = {block: [] for block in frozen}
    handles = [block.register_forward_hook(lambda m, args, output: seen[m].append(output)) for block in frozen]
    device = next(adapted.parameters()).device
    inputs = {name: value.to(device) for name, value in collate([cut_example(example, TRIED)], 0).items()}
    try:
        with evaluation_mode(adapted), suppress(*OF_MODELS):  # the training is going to say what is wrong with those
            plain_model(adapted)(**inputs, **no_cache(adapted))
    finally:
        for handle in handles:
            handle.remove()
    most = max(map(len, seen.values()))
    if most > 1:
        return f"{type(frozen[0]).__name__} runs {most} times in a pass"
    first = [output[0] if isinstance(output, tuple | list) else output for of in seen.values() for output in of]
    if any(not torch.is_tensor(states) or states.ndim != 3 for states in first):
        return f"{type(frozen[0]).__name__} works on several streams of hidden states"
    return None


def keeps_states(adapted: Any, settings: TrainSettings, examples: Sequence[Example], *, seq2seq: bool) -> bool:
    """Whether later epochs of a training begin at its first trained block."""
    blocks, _ = keepable_blocks(adapted, settings, examples, seq2seq=seq2seq)
    return bool(blocks) and _are_of_use(adapted, settings, examples)


def _are_of_use(adapted: Any, settings: TrainSettings, examples: Sequence[Example], left_out: int = 0) -> bool:
    """Whether there is a later epoch, and memory to keep all states until then."""
    first = next(p for p in adapted.parameters() if p.is_floating_point())
    width = int(adapted.config.get_text_config().hidden_size)
    return settings.num_epochs > 1 and fits_memory(examples, width, first.dtype, left_out)


def shared_prompt(
    adapted: Any, settings: TrainSettings, examples: Sequence[Example], *, seq2seq: bool
) -> SharedPrompt | None:
    """What all rows begin with, where that is to be computed once and gives the same states; else None, and it is said
    why."""
    if not settings.shared_prompt:
        return None
    tokens, why = _shared_tokens(adapted, settings, examples, seq2seq=seq2seq)
    if why is not None:
        log.warning("what all rows begin with is computed in each of them: %s", why)
    return SharedPrompt(examples[0].input_ids[:tokens]) if tokens else None


def _shared_tokens(
    adapted: Any, settings: TrainSettings, examples: Sequence[Example], *, seq2seq: bool
) -> tuple[int, str | None]:
    frozen, why = _steady_blocks(adapted, settings, examples, seq2seq=seq2seq)
    plain = plain_model(adapted)
    if not frozen:
        return 0, why or "no block is frozen for good below the first trained one, or no text is read by one stack"
    if several():
        return 0, "several processes train"
    if examples[0].types or find_stacks(plain)[-1].tower not in ("decoder", "language"):
        return 0, f"{type(plain).__name__} is no decoder of text alone"
    if plain.base_model is plain:
        return 0, f"{type(plain).__name__} has no backbone that can be called by itself"
    with evaluation_mode(adapted):
        return shared_opening(plain.base_model, frozen, examples, execution_device(frozen[0]))


def open_activation_cache(
    adapted: Any,
    settings: TrainSettings,
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    seq2seq: bool,
    prompt: SharedPrompt | None = None,
) -> ActivationCache | None:
    """Where what the frozen prefix gives is kept; None where there is no use in it, or it would not be exact.

    Args:
        prompt: kept elsewhere, and not with each row that begins with it.
    """
    left_out = prompt.tokens if prompt else 0
    shared = settings.activation_cache not in ("auto", "off")
    blocks, why = keepable_blocks(adapted, settings, examples, seq2seq=seq2seq)
    if blocks and shared and several():
        why = "several processes keep it in memory, each its own rows', not in a directory"
    if why is not None:
        log.log(logging.WARNING if shared else logging.INFO, "what the frozen blocks give is not kept: %s", why)
    if not blocks:
        return None
    if shared and parse_strategy(settings.strategy).freezes:
        # What is frozen has been trained here, and serves no other training.
        log.warning("with progressive freezing, what the frozen blocks give is kept in memory, not in a directory")
    elif shared:
        first = next(p for p in loaded.model.parameters() if p.is_floating_point())
        computed = (
            str(first.dtype),
            str(loaded.source.quantization),
            str(settings.precision),
            attention_of(loaded.model.config.get_text_config()),
            first.device.type,
            torch.__version__,
            transformers.__version__,
            *([f"behind {left_out}"] if left_out else []),
        )
        return ActivationCache(Path(settings.activation_cache) / cache_key(loaded.revision, blocks, computed, examples))
    return ActivationCache() if _are_of_use(adapted, settings, examples, left_out) else None
