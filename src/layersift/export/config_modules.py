"""Which modules another trainer's config adapts, read in that trainer's own spelling. Layers are not its business."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from layersift.adapt.targets import Targets
from layersift.config.fields import check_value
from layersift.errors import AdapterError, LayersiftError
from layersift.models.stacks import is_linear

ALL_LINEAR = "all-linear"
Names = str | list[str]
Fits = Callable[[str, str, str], bool]  # a pattern, a module's full name, its name within its block


class Section:
    """The keys of a config, each held against the type that the trainer takes; None for a key that is missing."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str, hint: Any) -> Any:
        """The value of a key.

        Raises:
            LayersiftError: of another type; the message names file and key.
        """
        value = self.values.get(key)
        if value is not None:
            check_value(f"{self.where}{key}", value, hint)
            if value in ("", [], {}):
                raise LayersiftError(f"{self.where}{key} is empty; leave it away for the default")
        return value

    def names(self, key: str) -> list[str] | None:
        """A list of names, which may be given as one name."""
        value = self.get(key, Names)
        return [value] if isinstance(value, str) else value


@dataclass(frozen=True)
class Wanted:
    """The modules that a config names."""

    key: str  # that names them; empty: none does
    modules: Names | None = None  # as PEFT takes them
    beside: tuple[str, ...] = ()  # names beside all linear modules
    by_class: bool = False  # linear is what is called so, which PEFT's other linear modules (Conv1D) are not
    parameters: tuple[str, ...] = ()  # stacked experts, by PEFT's target_parameters
    # Of trainers with matching of their own, for linear modules alone.
    fits: Fits | None = None
    patterns: tuple[str, ...] = ()  # none: every linear module
    excluded: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # further fields of PEFT's config, about the modules

    def peft_options(self, model: nn.Module, blocks: Iterable[str]) -> dict[str, Any]:
        """The fields of PEFT's config that say the same of some blocks.

        Args:
            blocks: the paths of the chosen blocks.

        Raises:
            AdapterError: a pattern fits no linear module of these blocks.
        """
        options = dict(self.options)
        if self.parameters:
            options["target_parameters"] = list(self.parameters)
        # None, too, is said: of a config that names no modules PEFT's default counts, not ours.
        options["target_modules"] = self.modules if self.fits is None else self._fitting(model, blocks, self.fits)
        return options

    def _fitting(self, model: nn.Module, blocks: Iterable[str], fits: Fits) -> list[str]:
        linear = [name for name, module in model.named_modules() if is_linear(module) and _called_so(module)]
        inside = {
            name: name.removeprefix(f"{block}.") for block in blocks for name in linear if name.startswith(f"{block}.")
        }
        for pattern in self.patterns:
            if not any(fits(pattern, *names) for names in inside.items()):
                raise AdapterError(f"{pattern!r} fits no linear module of the selected layers")
        chosen = [
            name
            for name, short in inside.items()
            if not self.patterns or any(fits(pattern, name, short) for pattern in self.patterns)
            if not any(fits(pattern, name, short) for pattern in self.excluded)
        ]
        if not chosen:
            raise AdapterError("no linear module of the selected layers is left")
        return sorted(chosen)

    def require_all(self, model: nn.Module, targets: Targets) -> None:
        """Refuse names of which nothing, or too little, is among the targets.

        Raises:
            AdapterError: a name beside all linear modules that is none, or of a parameter that no chosen layer has.
        """
        prefixes = tuple(f"{targets.stack.block_path(layer)}." for layer in targets.layers)
        inside = [name for name, _ in model.named_modules() if name.startswith(prefixes)]
        for name in self.beside:
            named = [module for module in inside if _ends_in(module, name)]
            if not named or not set(named) <= set(targets.modules):
                raise AdapterError(f"{name!r} is no linear module of the selected layers")
        for name in targets.modules if self.by_class else ():
            if not _called_so(module := model.get_submodule(name)):
                raise AdapterError(f"{name} is a {type(module).__name__}, which is no linear module there")
        for name in self.parameters:
            if not any(_ends_in(parameter, name) for parameter in targets.parameters):
                raise AdapterError(f"no selected layer has a parameter {name!r}")


def _called_so(module: nn.Module) -> bool:
    return "Linear" in type(module).__name__


def _ends_in(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def of_trl(section: Section) -> Wanted:
    """TRL hands its keys on to PEFT, and takes a list of one for a regular expression."""
    modules: Any = section.get("lora_target_modules", Names)
    if isinstance(modules, list) and len(modules) == 1:
        (modules,) = modules
    parameters = tuple(section.names("lora_target_parameters") or ())
    key = _first(section, "lora_target_modules", "lora_target_parameters")
    return Wanted(key, modules, parameters=parameters)


def of_axolotl(section: Section) -> Wanted:
    """Axolotl hands its keys on to PEFT; `lora_target_linear` adds all linear modules to what is named."""
    modules: Any = section.get("lora_target_modules", Names)
    parameters = tuple(section.names("lora_target_parameters") or ())
    excluded = section.get("lora_exclude_modules", Names)
    options = {"exclude_modules": excluded} if excluded else {}
    if section.get("lora_target_linear", bool):
        if isinstance(modules, str) and modules != ALL_LINEAR:
            raise LayersiftError(
                f"{section.where}lora_target_modules is a text beside lora_target_linear: true, which takes a list of "
                "names; keep one of the two"
            )
        beside = tuple(modules) if isinstance(modules, list) else ()
        return Wanted("lora_target_linear", ALL_LINEAR, beside, True, parameters, options=options)
    key = _first(section, "lora_target_modules", "lora_target_parameters")
    return Wanted(key, modules, parameters=parameters, options=options)


def of_llamafactory(section: Section) -> Wanted:
    """LLaMA-Factory takes names between commas, and all linear modules where none is given."""
    value = section.get("lora_target", Names)
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    every = names in (None, ["all"])
    return Wanted(_first(section, "lora_target"), ALL_LINEAR if every else names, by_class=every)


def of_swift(section: Section) -> Wanted:
    """ms-swift takes a regular expression before names, and all linear modules where neither is given."""
    parameters = tuple(section.names("target_parameters") or ())
    if regex := section.get("target_regex", str):
        return Wanted("target_regex", regex, parameters=parameters)
    names = section.names("target_modules")
    key = _first(section, "target_modules", "target_parameters")
    if names is None or ALL_LINEAR in names:
        beside = tuple(name for name in names or () if name != ALL_LINEAR)
        return Wanted(key, ALL_LINEAR, beside, True, parameters)
    return Wanted(key, names, parameters=parameters)


def of_nemo(section: Section) -> Wanted:
    """NeMo Automodel has wildcards for full names, names to leave out, or all linear modules; else `*_proj`."""
    every = section.get("match_all_linear", bool)
    names, excluded = section.names("target_modules"), section.names("exclude_modules")
    given = [key for key in ("match_all_linear", "target_modules", "exclude_modules") if section.values.get(key)]
    if len(given) > 1:
        raise LayersiftError(f"{section.where}{given[0]} and {given[1]} exclude one another; keep one of them")
    if not given:
        return Wanted("", fits=_nemo_fits, patterns=("*_proj",))
    if every:
        return Wanted("match_all_linear", fits=_nemo_fits)
    return Wanted(given[0], fits=_nemo_fits, patterns=tuple(names or ()), excluded=tuple(excluded or ()))


def of_mlx(section: Section) -> Wanted:
    """mlx-lm has names within a block, or full ones; all linear modules where none is given."""
    keys = section.get("keys", list[str])
    return Wanted(
        _first(section, "keys"), fits=lambda key, full, short: key in (full, short), patterns=tuple(keys or ())
    )


def _first(section: Section, *keys: str) -> str:
    return next((key for key in keys if key in section), "")


def _nemo_fits(pattern: str, full: str, short: str) -> bool:
    """NeMo's rule: `*` is any text; `.*` behind a whole part of a name is what lies below that part."""
    if pattern == full:
        return True
    regex, parts = "", re.split(r"(\.?\*)", pattern)
    for place, part in enumerate(parts):
        if place % 2 == 0:
            regex += part
            continue
        before = parts[place - 1]
        whole = before.startswith(".") or (place == 1 and before != "") or re.search(r"\.\d+$", before)
        regex += r"(\..*)?" if part == ".*" and whole else "(.*)"
    try:
        return re.match(f"^{regex}$", full) is not None
    except re.error as error:
        raise AdapterError(f"{pattern!r} is no pattern of names ({error}); names, with * for any part, are") from None
