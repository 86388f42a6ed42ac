"""What an adapter would train, counted without weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from layersift.adapt.targets import resolve_targets
from layersift.load.blocks import BlockStack

if TYPE_CHECKING:
    from peft import PeftConfig


def adapters(
    model: nn.Module, stack: BlockStack, layers: Sequence[int], config: PeftConfig
) -> tuple[list[str], int | None]:
    """Full names of the modules that adapters on ``layers`` would sit on, and, for LoRA, their number of parameters.

    Raises:
        AdapterError: see :func:`layersift.adapt.targets.resolve_targets`.
    """
    targets, _ = resolve_targets(model, stack, layers, config)
    if config.peft_type != "LORA":
        return list(targets.modules), None
    return list(targets.modules), sum(_lora_parameters(model.get_submodule(n), config.r) for n in targets.modules)


def _lora_parameters(module: nn.Module, rank: int) -> int:
    weight: Any = module.weight
    return rank * int(sum(weight.shape))  # A is (r, in), B is (out, r)
