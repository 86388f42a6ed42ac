"""What a method would train, found out without weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from layersift.adapt.targets import derive_config, resolve_targets
from layersift.load.blocks import BlockStack

if TYPE_CHECKING:
    from peft import PeftConfig

NOT_TRAINED = ".ranknum"  # AdaLoRA's count of ranks, which stops requiring a gradient once it has a value


def adapted_modules(
    model: nn.Module, stack: BlockStack, layers: Sequence[int], config: PeftConfig | None
) -> tuple[str, ...]:
    """Full names of the modules that carry an adapter on ``layers``; of the blocks where these themselves are trained.

    Raises:
        AdapterError: see :func:`layersift.adapt.targets.resolve_targets`.
    """
    if config is None:
        return tuple(stack.block_path(layer) for layer in layers)
    return resolve_targets(model, stack, layers, config)[0].modules


def trained_by_layer(
    model: nn.Module, stack: BlockStack, layers: Sequence[int], config: PeftConfig | None
) -> list[int] | None:
    """Parameters that would be trained in each of ``layers``, a head apart.

    Found by attaching the adapters to a copy of ``model``, which is best one without weights (on the meta device).
    None for the few methods that cannot be attached there, because they start from the weights.

    Raises:
        AdapterError: see :func:`layersift.adapt.targets.resolve_targets`.
    """
    if config is None:
        return [sum(p.numel() for p in model.get_submodule(stack.block_path(i)).parameters()) for i in layers]
    from peft import get_peft_model

    trial = copy.deepcopy(model)
    targets, start = resolve_targets(trial, stack, layers, config)
    derived = derive_config(trial, targets, start)
    if isinstance(getattr(derived, "init_lora_weights", None), str):
        derived.init_lora_weights = True  # how they start does not change how many there are
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted: Any = get_peft_model(trial, derived, low_cpu_mem_usage=True)
    except NotImplementedError:
        return None
    prefix = "base_model.model."
    trained = {
        name.removeprefix(prefix): p.numel()
        for name, p in adapted.named_parameters()
        if p.requires_grad and not name.partition(NOT_TRAINED)[1]
    }
    return [sum(n for name, n in trained.items() if name.startswith(f"{stack.block_path(i)}.")) for i in layers]
