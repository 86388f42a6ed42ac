"""The kinds of modules that a block is made of, as targets of adapters: those of its attention, and the others."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

from torch import nn

from layersift.adapt.ranks import ATTENTION, MLP, is_attention
from layersift.adapt.targets import Targets, resolve_targets
from layersift.errors import AdapterError
from layersift.models.stacks import BlockStack


def kinds_of_modules(model: nn.Module, stack: BlockStack, config: Any) -> dict[str, str]:
    """What to give as target modules for each kind alone, in all layers; nothing where there is one kind only.

    Of the modules that ``config`` adapts; where these are of one kind, as PEFT's defaults often are, of all linear.

    Raises:
        AdapterError: see :func:`layersift.adapt.targets.resolve_targets`.
    """
    if config is None:
        return {}
    targets, _ = resolve_targets(model, stack, range(stack.num_layers), config)
    by_kind = _by_kind(targets, model)
    if not all(by_kind.values()):
        every = copy.deepcopy(config)
        every.target_modules = "all-linear"
        try:
            targets, _ = resolve_targets(model, stack, range(stack.num_layers), every)
        except AdapterError:  # a method that is not for every linear layer
            return {}
        by_kind = _by_kind(targets, model)
    # Parameters that hold stacked experts have no modules, so that neither kind would be whole.
    if targets.parameters or not all(by_kind.values()):
        return {}
    return {kind: _named(inner, by_kind[MLP if kind == ATTENTION else ATTENTION]) for kind, inner in by_kind.items()}


def name_targets(model: nn.Module, stack: BlockStack, config: Any) -> str | None:
    """The modules that ``config`` adapts in all layers, as one writes them: ``query,value``, or ``all-linear``.

    Returns:
        Ends of names with commas between, ``all-linear``, or a regex; None where these are not modules alone (stacked
        experts), or where the blocks themselves are trained.

    Raises:
        AdapterError: see :func:`layersift.adapt.targets.resolve_targets`.
    """
    if config is None:
        return None
    layers = range(stack.num_layers)
    targets, _ = resolve_targets(model, stack, layers, config)
    if targets.parameters:
        return None
    named = sorted({name for layer in layers for name in targets.leaves(layer)})
    ends = sorted({name.rpartition(".")[2] for name in named})
    for written, wanted in ((",".join(ends), ends), ("all-linear", "all-linear")):
        again = copy.deepcopy(config)
        again.target_modules = wanted
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hybrid stacks, said once already
            try:
                same = resolve_targets(model, stack, layers, again)[0].modules == targets.modules
            except AdapterError:
                same = False
        if same:
            return written
    return _named(named, named)


def _by_kind(targets: Targets, model: nn.Module) -> dict[str, list[str]]:
    """Names within their blocks."""
    inner_names: dict[str, set[str]] = {ATTENTION: set(), MLP: set()}
    for layer in targets.layers:
        prefix = f"{targets.stack.block_path(layer)}."
        for inner in targets.leaves(layer):
            inner_names[ATTENTION if is_attention(prefix + inner, targets, model) else MLP].add(inner)
    return {kind: sorted(names) for kind, names in inner_names.items()}


def _named(wanted: list[str], others: list[str]) -> str:
    """The ends of the names where these say it, else a regex for the names within a block."""
    ends = sorted({name.rpartition(".")[2] for name in wanted})
    if not any(other.rpartition(".")[2] in ends for other in others):
        return ",".join(ends)
    return rf".*\.\d+\.(?:{'|'.join(map(re.escape, wanted))})"
