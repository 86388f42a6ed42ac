"""The memory that each of several devices takes, where they share a training's rows, and perhaps its weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from layersift.config.limits import Devices
from layersift.models.stacks import BlockStack
from layersift.plan.memory import Memory
from layersift.plan.planner import Plan

# DeepSpeed's defaults for ZeRO 3, in numbers; https://www.deepspeed.ai/docs/config-json
LIVE = 10**9  # stage3_max_live_parameters: gathered at once
WHOLE = 10**5  # stage3_param_persistence_threshold: of a parameter that stays whole
BUCKET = 5 * 10**8  # reduce_bucket_size: gradients on their way
FSDP_BLOCKS = 2  # gathered at once: the one that is computed, and the next one on its way


def memory_of_device(base: int, plan: Plan, model: nn.Module, stack: BlockStack, devices: Devices) -> Memory:
    """What each device holds at the peak of a step; the fullest one, where they differ.

    Args:
        base: bytes of the loaded model.
        plan: of a step on one device's part of the batch.
        model: without adapters, with or without weights.
        stack: of the blocks that are chosen among.
    """
    memory = Memory.of(base, plan)
    count = devices.count
    if count == 1:
        return memory
    if devices.way == "zero3":
        return _under_zero3(memory, model, count)
    memory = replace(memory, buckets=memory.gradients)  # DDP copies gradients to send them
    if devices.way == "ddp":
        return memory
    blocks = [tuple(block.parameters()) for block in dict.fromkeys(stack.blocks(model))]
    left = sum(_bytes(block) - _part(block, count) for block in blocks)
    return replace(memory, base=base - left, gathered=FSDP_BLOCKS * max(map(_bytes, blocks)))


def _under_zero3(memory: Memory, model: nn.Module, count: int) -> Memory:
    """Everything is cut, small parameters stay whole besides; what is gathered stays until there is too much of it."""
    width = next(model.parameters()).element_size()
    large = sum(p.numel() for p in model.parameters() if p.numel() > WHOLE)
    small = memory.base - width * large
    return replace(
        memory,
        base=small + -(-memory.base // count),
        adapters=memory.adapters + -(-memory.adapters // count),  # low-rank matrices count as small
        gradients=-(-memory.gradients // count),
        optimizer=-(-memory.optimizer // count),
        gathered=width * min(large, LIVE),
        buckets=min(memory.gradients, 4 * BUCKET),
    )


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _part(parameters: Iterable[nn.Parameter], count: int) -> int:
    """Bytes of one device's part: parameters are cut along their first dimension, in equal parts but for the last."""
    cut = [p for p in parameters if p.numel() and p.ndim]
    return sum(-(-len(p) // count) * p[0].numel() * p.element_size() for p in cut)
