"""Spectrum as its authors use it: of each kind of module the share whose weights have the most signal (2406.06623).

The authors train these modules themselves; adapters can be put on them as well.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import torch
from torch import nn

from layersift.errors import SelectionError
from layersift.models.load import LoadedModel
from layersift.models.stacks import BlockStack
from layersift.records.data import DataRecord
from layersift.records.selection import Selection, by_hand
from layersift.score.criteria.spectrum import signal_to_noise
from layersift.score.weights import linear_maps, weight_of

Module = tuple[int, str]  # layer, and name within its block


def top_modules(model: nn.Module, stack: BlockStack, share: float) -> list[Module]:
    """Of the linear maps of each kind, by their name within the block, those of the highest signal-to-noise ratio.

    Args:
        share: of each kind, above 0 and up to 1; one of each is taken at least.

    Raises:
        SelectionError: a share out of range, or no linear map whose singular values are finite.
        ModelError: weights that are packed and cannot be unpacked.
    """
    if not 0 < share <= 1:
        raise SelectionError(f"spectrum {share:g} is out of range; above 0 and up to 1 is possible")
    ratios: dict[str, dict[int, float]] = defaultdict(dict)
    for layer, name, module in linear_maps(model, stack):
        weight = weight_of(module)
        if weight.ndim == 2 and min(weight.shape) > 1 and bool(torch.isfinite(weight).all()):
            ratio = signal_to_noise(weight.double() if weight.device.type == "cpu" else weight.float())
            if math.isfinite(ratio):
                ratios[name][layer] = ratio
    if not ratios:
        raise SelectionError("spectrum: the blocks hold no linear map whose singular values can be read")
    chosen: list[Module] = []
    for name, of in ratios.items():
        ordered = sorted(of, key=lambda layer: (-of[layer], layer))
        chosen += [(layer, name) for layer in ordered[: max(1, round(share * len(ordered)))]]
    return sorted(chosen)


def spectrum_selection(loaded: LoadedModel, stack: BlockStack, share: float, rank: int) -> Selection:
    """These modules as a selection, whose adapters all have one rank.

    Raises:
        SelectionError, ModelError: see :func:`top_modules`.
    """
    modules: dict[int, dict[str, int]] = defaultdict(dict)
    for layer, name in top_modules(loaded.model, stack, share):
        modules[layer][name] = rank
    rule = f"of each kind of module the top {share:.4g} by signal-to-noise ratio (Spectrum)"
    plain = by_hand(loaded.name, loaded.revision, stack, sorted(modules), DataRecord(), rule)
    return replace(plain, modules=dict(modules))


def parameter_names(model: nn.Module, selection: Selection) -> list[str]:
    """The weights and biases of a selection's modules, by their full names."""
    stack = selection.stack(model)
    modules = selection.modules or {}
    inside = [f"{stack.block_path(layer)}.{name}" for layer, of in sorted(modules.items()) for name in of]
    return [f"{path}.{name}" for path in inside for name, _ in model.get_submodule(path).named_parameters()]
