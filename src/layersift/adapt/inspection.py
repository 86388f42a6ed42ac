"""What a method would train, found out without weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from layersift.adapt.targets import ATTACH_REMEDY, derive_config, resolve_targets
from layersift.compat import drop_offloading
from layersift.errors import AdapterError, one_line
from layersift.models.stacks import BlockStack

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

    Found by attaching the adapters to a copy of ``model`` without weights. None for the few methods that cannot be
    attached there, because they start from the weights.

    Raises:
        AdapterError: see :func:`layersift.adapt.targets.resolve_targets`.
    """
    if config is None:
        return [sum(p.numel() for p in model.get_submodule(stack.block_path(i)).parameters()) for i in layers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = adapt_without_weights(without_weights(model), stack, layers, config)
    except NotImplementedError:
        return None
    prefix = "base_model.model."
    trained = {
        name.removeprefix(prefix): p.numel()
        for name, p in adapted.named_parameters()
        if p.requires_grad and not name.partition(NOT_TRAINED)[1]
    }
    return [sum(n for name, n in trained.items() if name.startswith(f"{stack.block_path(i)}.")) for i in layers]


def adapt_without_weights(trial: nn.Module, stack: BlockStack, layers: Sequence[int], config: PeftConfig | None) -> Any:
    """What would be trained on some layers of a model without weights, a head apart; the model is changed.

    Raises:
        AdapterError: see :func:`layersift.adapt.targets.resolve_targets`.
        NotImplementedError: the method begins from the weights.
    """
    if config is None:
        for layer in layers:
            trial.get_submodule(stack.block_path(layer)).requires_grad_()
        return trial
    from peft import get_peft_model

    targets, start = resolve_targets(trial, stack, layers, config)
    derived = derive_config(trial, targets, start)
    derived.task_type = None  # PEFT would train the head, too
    if isinstance(getattr(derived, "init_lora_weights", None), str):
        derived.init_lora_weights = True  # how they start does not change how many there are
    try:
        return get_peft_model(trial, derived, low_cpu_mem_usage=True)
    except NotImplementedError:
        raise
    except Exception as error:
        raise AdapterError(
            f"PEFT cannot attach {type(config).__name__} to this model ({one_line(error)}); {ATTACH_REMEDY}"
        ) from error


def without_weights(model: nn.Module) -> nn.Module:
    """A copy on the meta device, made without copying a value."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    twin = copy.deepcopy(model, dict[int, Any](empty))
    for module in twin.modules():  # accelerate's hooks would move inputs to where the weights are not
        drop_offloading(module)
    return twin


def layer_costs(
    model: nn.Module, stack: BlockStack, config: PeftConfig | None, layers: Sequence[int] | None = None
) -> list[int]:
    """Parameters that would be trained in each of ``layers``, by default every one, to hold a budget against.

    Raises:
        AdapterError: the method's parameters cannot be counted ahead; or see
            :func:`layersift.adapt.targets.resolve_targets`.
    """
    counted = trained_by_layer(model, stack, range(stack.num_layers) if layers is None else layers, config)
    if counted is None:
        kind = type(config).__name__
        raise AdapterError(f"{kind}: what it trains depends on the weights, so budget-params cannot count it ahead")
    return counted
