"""What a trainer's config says of adapters already: their modules, rank, scale and dropout, which an export keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from layersift.config.fields import read_yaml, types_of
from layersift.config.train import ExportSettings, TrainSettings
from layersift.errors import LayersiftError
from layersift.export.trainers import Trainer
from layersift.export.wanted import Section, Wanted
from layersift.records.selection import Selection

SHAPE = ("rank", "alpha", "dropout")
# What else of a config changes which parameters a module gets, by PEFT's names.
OPTIONS: dict[str, Any] = {
    "use_dora": bool,
    "rank_pattern": dict[str, Annotated[int, Meta(ge=1)]],
    "alpha_pattern": dict[str, Annotated[float, Meta(gt=0)]],
}
PATTERNS = ("rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class Existing:
    """The adapters of a config; nothing of them where it trains none yet."""

    shape: dict[str, Any] = field(default_factory=dict)  # rank, alpha, dropout, as the config has them or implies them
    options: dict[str, Any] = field(default_factory=dict)  # further fields of PEFT's config
    wanted: Wanted | None = None  # its modules; None where others were asked for
    notes: tuple[str, ...] = ()  # what of it does not count, and where the trainer's own defaults do


def read_existing(trainer: Trainer, path: Path, given: ExportSettings, selection: Selection) -> Existing:
    """The adapters that a trainer's config describes.

    Args:
        given: the flags, which win over it.
        selection: of layers; or of modules with ranks of their own, which win over the config's modules.

    Raises:
        LayersiftError: it trains something else than LoRA, a value is of another type or out of range, or its keys
            contradict each other or the flags; the message names file and key.
    """
    values = read_yaml(path)
    inner = values.get(trainer.section) if trainer.section else values
    if inner is not None and not isinstance(inner, Mapping):
        raise LayersiftError(f"{path}: {trainer.section} is {inner!r}; keys and values are right")
    section = Section(inner or {}, f"{path}: {trainer.section}{'.' if trainer.section else ''}")
    adapted = _has_adapters(trainer, section if trainer.switch_inside else Section(values, f"{path}: "), section)
    shape, notes = _shape(trainer, section, given, adapted)
    if not adapted:
        return Existing(shape)
    options = {ours: section.get(key, OPTIONS[ours]) for ours, key in trainer.names.items() if ours in OPTIONS}
    options = {ours: value for ours, value in options.items() if value}
    if trainer.switch and values.get(trainer.switch) == "dora":
        options["use_dora"] = True
    wanted = trainer.wanted(section)
    by_modules = selection.modules is not None
    if (key := next((trainer.names[p] for p in PATTERNS if p in options), None)) and (given.ranks or by_modules):
        other = "--rank-of" if given.ranks else "a selection of modules with ranks of their own"
        raise LayersiftError(f"{section.where}{key} and {other} exclude one another; take one of them away")
    instead = f"--target-modules {given.target_modules}" if given.target_modules is not None else ""
    instead = "the selection, which names modules," if by_modules else instead
    if instead and wanted.key:
        notes.append(f"{section.where}{wanted.key} does not count; {instead} does")
    if not instead and not wanted.key:
        notes.append(f"{path} names no modules; {trainer.title}'s default counts: {trainer.default_modules}")
    return Existing(shape, options, None if instead else wanted, tuple(notes))


def settings_of(given: ExportSettings, existing: Existing, options: Mapping[str, Any]) -> TrainSettings:
    """Flags before what a trainer's own config says, and that before the defaults.

    Args:
        options: of LoRA's PEFT config, of a training that is exported.
    """
    values = {name: getattr(given, name) for name in (*SHAPE, "target_modules")}
    chosen = existing.shape | {name: value for name, value in values.items() if value is not None}
    return replace(TrainSettings(), ranks=given.ranks, method_options={**existing.options, **options}, **chosen)


def _has_adapters(trainer: Trainer, switches: Section, section: Section) -> bool:
    """Whether a config trains LoRA adapters, so that what it leaves open is as its trainer has it.

    Raises:
        LayersiftError: it says that something else is trained.
    """
    value = switches.values.get(trainer.switch)
    if value is not None and value not in trainer.on:
        right = " or ".join(map(repr, trainer.on))
        raise LayersiftError(f"{switches.where}{trainer.switch} is {value!r}, which is no LoRA; {right} is right")
    keys = (*trainer.names.values(), *trainer.targets, *trainer.superseded)
    return value is not None or trainer.by_default or any(key in section for key in keys)


def _of_trainer(trainer: Trainer, said: dict[str, Any], left_open: list[str]) -> dict[str, Any]:
    """With a trainer's own defaults for what is left open; a scale is one for alpha."""
    names = [*left_open, *(["scale"] if "alpha" in left_open else [])]
    return said | {ours: trainer.defaults[ours] for ours in names if ours in trainer.defaults}


def _shape(
    trainer: Trainer, section: Section, given: ExportSettings, adapted: bool
) -> tuple[dict[str, Any], list[str]]:
    """Rank, alpha and dropout of a config, and of what it leaves open its trainer's defaults; notes on these.

    Raises:
        LayersiftError: one of them is of another type or out of range.
    """
    hints = types_of(TrainSettings)
    hints = {**{name: hints[name] for name in SHAPE}, "scale": hints["alpha"]}
    said = {ours: section.get(key, hints[ours]) for ours, key in trainer.names.items() if ours in hints}
    said = {ours: value for ours, value in said.items() if value is not None}
    left_open = [ours for ours in SHAPE if ours not in said and not (ours == "alpha" and "scale" in said)]
    if adapted:
        said = _of_trainer(trainer, said, left_open)
    if (scale := said.pop("scale", None)) is not None:
        said["alpha"] = scale * (given.rank or said.get("rank", TrainSettings.rank))
    notes = []
    for ours in left_open if adapted else ():
        if getattr(given, ours) is None:
            key = trainer.names.get(ours) or trainer.names["scale"]
            value = said.get(ours, getattr(TrainSettings, ours))
            value = value / (given.rank or said.get("rank", TrainSettings.rank)) if key == "scale" else value
            whose = f"{trainer.title}'s default" if ours in said else "layersift's default"
            notes.append(f"{section.where}{key} is not there; {whose} counts: {value:g}")
    return said, notes
