"""Other ranks for some modules: by kind (attention against the rest of the block), by name, or by layer."""

from __future__ import annotations

import copy
import re
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
