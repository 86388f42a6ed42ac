"""The kinds of modules in a block (its attention, the others), and other ranks for some: by kind, name or layer."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from layersift.adapt.methods import alpha_at_rank
from layersift.adapt.targets import Targets, resolve_targets
from layersift.errors import AdapterError
from layersift.models.stacks import BlockStack

if TYPE_CHECKING:
    from peft import PeftConfig

ATTENTION, MLP = "attention", "mlp"


def with_ranks(
    model: nn.Module, stack: BlockStack, layers: Sequence[int], config: PeftConfig, ranks: Mapping[str | int, int]
) -> Any:
    """A copy of ``config`` in which some modules of ``layers`` have a rank of their own, at the same scale of updates.

    Args:
        ranks: rank by ``attention``, ``mlp`` (all that is not attention), a module's name or the end of it, or a
            layer's index. Where several fit a module, the last one counts.

    Raises:
        AdapterError: the method has no ranks by module, a rank is below 1, or a key fits nothing that is adapted.
    """
    if not ranks:
        return config
    if not hasattr(config, "rank_pattern"):
        raise AdapterError(f"{type(config).__name__} has one rank for all modules; leave the ranks by module away")
    targets, _ = resolve_targets(model, stack, layers, config)
    wanted: dict[str, int] = {}
    for key, rank in ranks.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise AdapterError(f"rank of {key!r} is {rank!r}; a whole number from 1 is needed")
        fitting = [name for name in targets.modules if _fits(str(key), name, targets, model)]
        if not fitting:
            raise AdapterError(
                f"ranks: {key!r} fits none of the adapted modules; give {ATTENTION}, {MLP}, a module's name or the "
                "index of a selected layer"
            )
        wanted |= dict.fromkeys(fitting, rank)
    ranked: Any = copy.deepcopy(config)
    patterns = {re.escape(name): rank for name, rank in wanted.items()}
    ranked.rank_pattern = {**(ranked.rank_pattern or {}), **patterns}
    alpha = next((getattr(ranked, n) for n in ("lora_alpha", "alpha") if hasattr(ranked, n)), None)
    if alpha is not None and hasattr(ranked, "alpha_pattern"):
        by_root = bool(getattr(ranked, "use_rslora", False))
        scaled = {pattern: alpha_at_rank(alpha, ranked.r, rank, by_root) for pattern, rank in patterns.items()}
        ranked.alpha_pattern = {**(ranked.alpha_pattern or {}), **scaled}
    return ranked


def only_modules(
    model: nn.Module, stack: BlockStack, config: PeftConfig, ranks: Mapping[int, Mapping[str, int]]
) -> Any:
    """A copy of ``config`` for some modules alone, each at a rank of its own, at the same scale of updates.

    Args:
        ranks: by layer and the module's name within its block.

    Raises:
        AdapterError: the method has no ranks by module, or the model has no such module.
    """
    named: dict[str | int, int] = {
        f"{stack.block_path(layer)}.{name}": rank for layer, of in ranks.items() for name, rank in of.items()
    }
    narrowed: Any = copy.deepcopy(config)
    narrowed.target_modules = sorted(map(str, named))
    return with_ranks(model, stack, sorted(ranks), narrowed, named)


def _fits(key: str, name: str, targets: Targets, model: nn.Module) -> bool:
    if key in (ATTENTION, MLP):
        return is_attention(name, targets, model) == (key == ATTENTION)
    if key.isdecimal():
        return name.startswith(f"{targets.stack.block_path(int(key))}.")
    return name == key or name.endswith(f".{key}")


def is_attention(name: str, targets: Targets, model: nn.Module) -> bool:
    """Whether a module lies in its block's attention: it, or one that encloses it there, is called so.

    There is no structure to tell by: a query projection is a matrix like any other.
    """
    path = next(part.path for part in targets.stack.parts if name.startswith(f"{part.path}."))
    depth = path.count(".") + 2  # of the block
    parts = name.split(".")
    around = [".".join(parts[:end]) for end in range(depth + 1, len(parts) + 1)]
    words = [*parts[depth:], *(type(model.get_submodule(path)).__name__ for path in around)]
    return any("attention" in word.lower() or "attn" in word.lower() for word in words)


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
