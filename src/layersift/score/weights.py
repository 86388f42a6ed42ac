"""The linear maps of every block, and how numbers of different kinds of maps become one score a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

from layersift.compat import unpacked_weight
from layersift.errors import ModelError
from layersift.models.stacks import BlockStack, is_linear
from layersift.score.probe import Undefined


def linear_maps(model: nn.Module, stack: BlockStack) -> Iterator[tuple[int, str, nn.Module]]:
    """Layer, name relative to the block, and module of every linear map, GPT-2's transposed ones included."""
    for layer, block in enumerate(stack.blocks(model)):
        for name, module in block.named_modules():
            if is_linear(module):
                yield layer, name, module


def matrices(model: nn.Module, stack: BlockStack) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Layer, name relative to the block, and weight (m, k) or (k, m) of every linear map: experts that are stored as
    one tensor (E, m, k), or one below the other as (E m, k), each by itself. Vectors of any shape are no maps.

    Raises:
        ModelError: see :func:`weight_of`.
    """
    for layer, name, module in linear_maps(model, stack):
        yield layer, name, weight_of(module)
    for layer, block in enumerate(stack.blocks(model)):
        for name, parameter in block.named_parameters():
            owner = block.get_submodule(name.rpartition(".")[0])
            for expert, weight in enumerate(_stacked(owner, parameter)):
                yield layer, f"{name}[{expert}]", weight


def _stacked(owner: nn.Module, parameter: nn.Parameter) -> torch.Tensor | tuple[()]:
    """The matrices (E, m, k) that a parameter of ``owner`` is a stack of; none where it is something else."""
    if not parameter.is_floating_point() or is_linear(owner) or isinstance(owner, nn.modules.conv._ConvNd):
        return ()
    stack = parameter.detach()
    if stack.ndim == 2:  # DBRX's, whose module says how many experts it holds
        counts = [v for n, v in vars(owner).items() if n.endswith("num_experts") and isinstance(v, int) and v > 0]
        if not counts or stack.shape[0] % counts[0]:
            return ()
        stack = stack.reshape(counts[0], -1, stack.shape[-1])
    return stack if stack.ndim == 3 and min(stack.shape[1:]) > 1 else ()


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight (m, k) or (k, m), unpacked where it is stored quantised.

    Raises:
        ModelError: it is stored in a way that cannot be unpacked here; read as it lies, it would mean nothing.
    """
    weight = module.weight
    if isinstance(weight, torch.Tensor) and weight.is_floating_point():
        return weight.detach()
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        raise ModelError(
            "bitsandbytes has packed these 4-bit weights for this CPU in an earlier pass; load the model anew, and "
            "score by weights before anything else runs"
        )
    unpacked: torch.Tensor = unpacked_weight(module)
    if not unpacked.is_floating_point():
        raise ModelError(
            f"the weights of {type(module).__name__} are packed as {unpacked.dtype} in a way that PEFT cannot unpack; "
            "choose a criterion that reads no weights, such as cka or fisher"
        )
    return unpacked.detach()


def rank_within_kind(
    model: nn.Module, stack: BlockStack, of: Callable[[torch.Tensor], float]
) -> list[float | Undefined]:
    """Each layer's mean standing, from 0 (lowest) to 1 (highest), among the maps of the same kind in other layers.

    What is asked of a weight's spectrum depends on its shape: pure noise of 256 x 1024 scores a hundred times what
    pure noise of 256 x 256 does. So a query map is held against query maps of its own shape alone.
    """
    from scipy.stats import rankdata  # takes a second to import, and other criteria have no use for it

    values: dict[tuple[str, torch.Size], dict[int, float]] = {}
    for layer, name, stored in matrices(model, stack):
        weight = (
            stored.double() if stored.device.type == "cpu" else stored.float()
        )  # elsewhere doubles are slow, or none
        value = of(weight) if bool(torch.isfinite(weight).all()) else math.nan
        if math.isfinite(value):
            values.setdefault((name, weight.shape), {})[layer] = value
    standings: list[list[float]] = [[] for _ in range(stack.num_layers)]
    for by_layer in values.values():
        if len(by_layer) < 2:
            continue  # the only one of its kind stands nowhere
        places = (rankdata(list(by_layer.values())) - 1) / (len(by_layer) - 1)
        for layer, place in zip(by_layer, places, strict=True):
            standings[layer].append(float(place))
    return [sum(s) / len(s) if s else Undefined("no linear map of a kind that other layers have") for s in standings]
