"""Resolve a PEFT config and chosen layers to the exact modules and parameters of a loaded model.

PEFT's own ``layers_to_transform`` silently does something else for regex targets, bare backbones, vision towers, empty
lists and experts. So the explicit sorted list made here is the truth, and every config is derived from it.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from layersift.compat import converted_config, default_targets, drop_offloading, peft_allows
from layersift.errors import AdapterError, SelectionError, one_line, wrap_library_errors
from layersift.models.stacks import BlockStack, find_stacks, is_linear, join

if TYPE_CHECKING:
    from peft import PeftConfig


ATTACH_REMEDY = "another --method or other --target-modules may fit it"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Targets:
    """What is to carry an adapter: full names relative to the model, sorted."""

    stack: BlockStack
    layers: tuple[int, ...]
    modules: tuple[str, ...]
    parameters: tuple[str, ...]  # experts held as one stacked nn.Parameter

    def leaves(self, layer: int) -> tuple[str, ...]:
        """Names of the adapted modules of ``layer``, relative to its block."""
        prefix = self.stack.block_path(layer) + "."
        return tuple(name.removeprefix(prefix) for name in self.modules if name.startswith(prefix))


def stack_named(model: nn.Module, pattern: str, tower: str, num_layers: int, of: str) -> BlockStack:
    """The stack of ``model`` that a pattern of block paths names, also where a head adds or takes away a prefix.

    Args:
        pattern: path of block i, with {} for i; several joined by +, as their towers are.
        of: the model that the names come from, for messages.

    Raises:
        SelectionError: the model has no such stack, or several that fit.
    """
    paths, towers = [part.removesuffix(".{}") for part in pattern.split("+")], tower.split("+")
    if len(paths) != len(towers):
        raise SelectionError(f"{len(paths)} block patterns ({pattern}) but {len(towers)} towers ({tower})")
    stacks = [s for s in find_stacks(model) if len(paths) > 1 or s.num_layers == num_layers]
    fitting = [_fitting(stacks, path, name) for path, name in zip(paths, towers, strict=True)]
    parts = [stack for stack in fitting if stack is not None]
    if len(parts) == len(paths) and sum(part.num_layers for part in parts) == num_layers:
        for part, path, name in zip(parts, paths, towers, strict=True):
            if part.tower != name or not _same_end(part.path, path):
                log.warning(
                    "the selection names blocks %s.{} (%s); taken for %s.{} (%s)", path, name, part.path, part.tower
                )
        return join(parts)
    known = ", ".join(f"{s.path} ({s.tower}, {s.num_layers} layers)" for s in find_stacks(model))
    raise SelectionError(
        f"the selection is for {pattern} ({tower}, {num_layers} layers) of {of}; this {type(model).__name__} has "
        f"{known}"
    )


def _fitting(stacks: Sequence[BlockStack], path: str, tower: str) -> BlockStack | None:
    same_path = [s for s in stacks if s.path == path]
    same_end = [s for s in stacks if _same_end(s.path, path)]
    same_tower = [s for s in stacks if s.tower == tower]
    return next((candidates[0] for candidates in (same_path, same_end, same_tower) if len(candidates) == 1), None)


def _same_end(one: str, other: str) -> bool:
    """Whether two paths are one but for a prefix."""
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")


def _matches(name: str, wanted: str | Collection[str]) -> bool:
    """PEFT's rule: a string is a regex for the full name, a list holds full names or endings."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == w or name.endswith(f".{w}") for w in wanted)


def _wanted_modules(model: nn.Module, config: PeftConfig) -> str | list[str]:
    """The config's targets; where it names none, PEFT's default for this architecture, or else all linear layers."""
    wanted = getattr(config, "target_modules", None)
    if wanted or getattr(config, "target_parameters", None):
        if wanted is not None and not isinstance(wanted, str | list | tuple | set | frozenset):
            raise AdapterError(f"target_modules is {wanted!r}; a regex or a list of names is needed")
        return wanted if isinstance(wanted, str) else sorted(map(str, wanted or []))
    return default_targets(config, getattr(getattr(model, "config", None), "model_type", None)) or "all-linear"


def _check_config(config: PeftConfig) -> None:
    kind = type(config).__name__
    if not hasattr(config, "target_modules"):
        raise AdapterError(f"{kind} does not adapt modules of chosen layers; give a config with target_modules")
    for name in ("layers_to_transform", "layers_pattern"):
        if getattr(config, name, None):
            raise AdapterError(f"{kind} sets {name}, but the selection chooses the layers; leave it out")


def _require_regexes(config: PeftConfig) -> None:
    for name in ("target_modules", "exclude_modules"):
        pattern = getattr(config, name, None)
        if isinstance(pattern, str):
            with wrap_library_errors(
                AdapterError, f"{name} {pattern!r} is no regular expression", "a list of names is one way"
            ):
                re.compile(pattern)


def _require_saved_modules(model: nn.Module, config: PeftConfig) -> None:
    for wanted in getattr(config, "modules_to_save", None) or ():
        if not any(_matches(name, [str(wanted)]) for name, _ in model.named_modules()):
            raise AdapterError(f"modules_to_save names {wanted!r}, which {type(model).__name__} does not have")


def resolve_targets(
    model: nn.Module, stack: BlockStack, layers: Sequence[int], config: PeftConfig
) -> tuple[Targets, PeftConfig]:
    """The modules and parameters to adapt in ``layers``, and the config with PEFT's expert rewriting applied.

    Raises:
        AdapterError: the config cannot target modules, chooses layers itself, or finds nothing in a selected layer.
    """
    _check_config(config)
    _require_regexes(config)
    _require_saved_modules(model, config)
    if hasattr(model, "peft_config"):
        raise AdapterError("the model carries adapters already; give the plain model")
    start = copy.deepcopy(config)
    wanted = _wanted_modules(model, start)
    if wanted != "all-linear":
        start.target_modules = wanted
        if not isinstance(wanted, str):
            start = converted_config(start, model)
            wanted = sorted(start.target_modules or [])
    excluded = getattr(start, "exclude_modules", None) or []
    prefixes = tuple(f"{stack.block_path(i)}." for i in layers)

    def chosen(name: str) -> bool:
        return name.startswith(prefixes) and not _matches(name, excluded)

    if wanted == "all-linear":
        modules = [name for name, module in model.named_modules() if is_linear(module) and chosen(name)]
        modules = _without_shared_experts([n for n in modules if peft_allows(n, start, model)], start, model)
    else:
        modules = [name for name, _ in model.named_modules() if chosen(name) and _matches(name, wanted)]
    parameters = _wanted_parameters(model, getattr(start, "target_parameters", None) or [], prefixes)
    targets = Targets(stack, tuple(layers), tuple(sorted(modules)), tuple(sorted(parameters)))
    named = getattr(config, "target_modules", None) or getattr(config, "target_parameters", None)
    if not named and wanted != "all-linear" and _without_target(targets):
        every: Any = copy.deepcopy(config)  # PEFT's default names attention, which hybrid stacks have in some layers
        every.target_modules = "all-linear"
        return resolve_targets(model, stack, layers, every)
    _check_every_layer(targets, wanted)
    _require_apart(model, targets, start)
    return targets, start


def saved_modules(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The modules that PEFT trains themselves (modules_to_save), by full names: those that end as one of the names."""
    return tuple(full for full, _ in model.named_modules() if any(full.endswith(str(name)) for name in names))


def _require_apart(model: nn.Module, targets: Targets, config: PeftConfig) -> None:
    """Refuse adapters within what is trained itself: PEFT would put them there and train neither as planned."""
    for saved in saved_modules(model, getattr(config, "modules_to_save", None) or ()):
        inside = next((name for name in targets.modules if f"{name}.".startswith(f"{saved}.")), None)
        if inside is not None:
            raise AdapterError(f"{inside} carries an adapter, but modules_to_save trains {saved} itself; name others")


def _without_shared_experts(modules: list[str], config: PeftConfig, model: nn.Module) -> list[str]:
    """Those that PEFT can adapt: it takes shared experts' maps for the stacked experts beside them, by their names.

    It would when the adapters are loaded again, too, by whomever.
    """
    every: Any = copy.deepcopy(config)
    every.target_modules = list(modules)
    with wrap_library_errors(
        AdapterError, f"PEFT cannot adapt all linear layers of {type(model).__name__}", "name some by --target-modules"
    ):
        kept = set(converted_config(every, model).target_modules)
    if lost := [name for name in modules if name not in kept]:
        log.warning("PEFT takes %s and its like for stacked experts; they carry no adapter", lost[0])
    return [name for name in modules if name in kept]


def _wanted_parameters(model: nn.Module, wanted: Collection[str], prefixes: tuple[str, ...]) -> list[str]:
    return [n for n, _ in model.named_parameters() if wanted and n.startswith(prefixes) and _matches(n, wanted)]


def _without_target(targets: Targets) -> list[int]:
    """The layers in which nothing is adapted."""
    prefixes = {layer: f"{targets.stack.block_path(layer)}." for layer in targets.layers}
    adapted = (*targets.modules, *targets.parameters)
    return [layer for layer, prefix in prefixes.items() if not any(name.startswith(prefix) for name in adapted)]


def _check_every_layer(targets: Targets, wanted: str | Sequence[str]) -> None:
    leaves = {layer: set(targets.leaves(layer)) for layer in targets.layers}
    if empty := _without_target(targets):
        raise AdapterError(
            f"target modules {wanted!r} match nothing in layer {', '.join(map(str, empty))} of {targets.stack.path}; "
            "name modules that every selected layer has, or use 'all-linear'"
        )
    if not isinstance(wanted, str):
        nowhere = [w for w in wanted if not any(_matches(name, [w]) for name in targets.modules)]
        if nowhere:
            raise AdapterError(
                f"target module {nowhere[0]!r} matches nothing in the selected layers of {targets.stack.path}; heads "
                "belong in modules_to_save"
            )
    if not isinstance(wanted, str) and set(wanted) <= set(targets.modules):
        return  # each is named in full
    alike: dict[str, list[set[str]]] = {}  # an encoder's layers are not expected to look like a decoder's
    for layer, suffixes in leaves.items():
        alike.setdefault(targets.stack.place(layer)[0].path, []).append(suffixes)
    partial = sorted(
        leaf
        for sets in alike.values()
        for leaf in sets[0].union(*sets)
        if any(leaf not in suffixes for suffixes in sets)
    )
    if partial:
        # Hybrid stacks, in which some layers mix tokens by other means than attention.
        warnings.warn(f"not every selected layer has: {', '.join(partial)}", stacklevel=4)


def anchored_regex(names: Sequence[str], stack: BlockStack, layers: Sequence[int]) -> str:
    """A regex whose full match is exactly ``names``: one alternative for each set of layers with the same leaves."""
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for layer in layers:
        prefix = stack.block_path(layer) + "."
        leaves = tuple(sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix)))
        if leaves:
            part, index = stack.place(layer)
            groups.setdefault((part.path, leaves), []).append(index)
    return "|".join(
        rf"{re.escape(path)}\.(?:{'|'.join(map(str, indices))})\.(?:{'|'.join(map(re.escape, leaves))})"
        for (path, leaves), indices in groups.items()
    )


def derive_config(model: nn.Module, targets: Targets, start: PeftConfig) -> Any:
    """A config that makes PEFT attach to exactly ``targets``.

    Ordinarily one anchored regex: unlike a list of names, PEFT neither rewrites nor reorders it, and it matches no
    other tower. Mixtures of experts are the exception, since PEFT breaks a regex up into leaf names there.
    """
    config = copy.deepcopy(start)
    config.target_modules = anchored_regex(targets.modules, targets.stack, targets.layers) if targets.modules else None
    if getattr(config, "exclude_modules", None):
        config.exclude_modules = None  # already applied
    if targets.parameters:
        config.target_parameters = list(targets.parameters)
    if getattr(config, "feedforward_modules", None):
        feedforward = [name for name in targets.modules if _matches(name, config.feedforward_modules)]
        config.feedforward_modules = anchored_regex(feedforward, targets.stack, targets.layers)
    if config.target_modules is not None and converted_config(config, model).target_modules != config.target_modules:
        if targets.stack.joined:
            raise AdapterError("PEFT can adapt mixtures of experts in one stack only; select in one tower")
        config.target_modules = sorted({name.rpartition(".")[2] for name in targets.modules})
        config.layers_to_transform = list(targets.layers)
        # Before PEFT 0.21 the pattern must not be at the beginning of a name.
        config.layers_pattern = re.escape(targets.stack.path.partition(".")[2] or targets.stack.path)
    return config


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
