"""Another trainer's YAML: as flags of ours, and what it says of adapters already, which an export keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from layersift.config.fields import read_yaml, types_of
from layersift.config.recipe import DataSettings
from layersift.config.train import FULL, SCHEDULERS, ExportSettings, TrainSettings
from layersift.errors import LayersiftError
from layersift.export.config_modules import Section, Wanted
from layersift.export.trainers import TRAINERS, Trainer
from layersift.files import read_json
from layersift.records.selection import Selection

Flags = dict[str, Any]  # by the names of the settings
# Keys that no other of these trainers has; TRL's come last, since it shares most with LLaMA-Factory.
TELLING = {
    "axolotl": ("base_model", "micro_batch_size", "sequence_len"),
    "llamafactory": ("finetuning_type", "stage", "lora_target", "lora_rank", "cutoff_len", "template", "dataset"),
    "trl": ("model_name_or_path", "use_peft", "dataset_name", "lora_r", "lora_target_modules"),
}
_TRANSFORMERS = {
    "model_name_or_path": "model",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "scheduler",
    "warmup_ratio": "warmup_ratio",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "weight_decay": "weight_decay",
    "seed": "seed",
}
PLAIN: dict[str, dict[str, str]] = {  # our settings by a trainer's keys
    "axolotl": {
        "base_model": "model",
        "learning_rate": "learning_rate",
        "lr_scheduler": "scheduler",
        "warmup_ratio": "warmup_ratio",
        "num_epochs": "epochs",
        "micro_batch_size": "batch_size",
        "gradient_accumulation_steps": "gradient_accumulation",
        "weight_decay": "weight_decay",
        "sequence_len": "max_length",
        "seed": "seed",
        "loraplus_lr_ratio": "loraplus_ratio",
    },
    "llamafactory": _TRANSFORMERS
    | {
        "model_revision": "revision",
        "cutoff_len": "max_length",
        "max_samples": "max_samples",
        "loraplus_lr_ratio": "loraplus_ratio",
    },
    "trl": _TRANSFORMERS | {"model_revision": "revision", "max_length": "max_length"},
}
RSLORA = {"axolotl": "peft_use_rslora", "llamafactory": "use_rslora", "trl": "use_rslora"}
# Columns by the keys of a data set's entry.
AXOLOTL_COLUMNS = {"field_messages": "messages_column", "field": "text_column"}
AXOLOTL_FIELDS = {"field_instruction": "prompt_column", "field_output": "response_column"}
FACTORY_COLUMNS = {"messages": "messages_column", "prompt": "prompt_column", "response": "response_column"}
_SPLIT = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class TrainerFile:
    """What a trainer's file says, as flags."""

    path: Path
    title: str  # of the trainer
    flags: Flags
    keys: dict[str, str]  # of the flags, the file's key
    notes: tuple[str, ...]  # what was not read, or is as the trainer has it by default


class _Reader:
    """Takes keys of a file, and remembers which."""

    def __init__(self, path: Path, values: Mapping[str, Any], name: str) -> None:
        self.path, self.values, self.name = path, values, name
        self.trainer: Trainer = TRAINERS[name]
        self.section = Section(values, f"{path}: ")
        self.flags: Flags = {}
        self.keys: dict[str, str] = {}
        self.notes: list[str] = []
        self.read: set[str] = set()

    def take(self, key: str, hint: Any, section: Section | None = None) -> Any:
        """The value of a key; a number that YAML takes for a text (1e-4) is one."""
        if section is None:
            self.read.add(key)
        section = section or self.section
        value = section.values.get(key)
        if isinstance(value, str) and re.fullmatch(r"[0-9.]+e[-+]?[0-9]+", value, re.IGNORECASE):
            section = Section({key: float(value)}, section.where)
        return section.get(key, hint)

    def put(self, flag: str, value: Any, key: str) -> None:
        """A flag that the file gives."""
        if value is not None:
            self.flags[flag], self.keys[flag] = value, key


def read_trainer_file(path: Path) -> TrainerFile:
    """A config of Axolotl, LLaMA-Factory or TRL as flags.

    Raises:
        LayersiftError: of none of them, or a value of another type or out of range; the message names file and key.
    """
    values = read_yaml(path)
    name = next((name for name, keys in TELLING.items() if any(key in values for key in keys)), None)
    if name is None:
        known = ", ".join(f"{TRAINERS[name].title} ({keys[0]})" for name, keys in TELLING.items())
        raise LayersiftError(f"{path}: no config of a trainer that is known by its keys: {known}")
    reader = _Reader(path, {str(key): value for key, value in values.items()}, name)
    _plain(reader)
    _adapters(reader)
    _memory(reader)
    {"axolotl": _axolotl_data, "llamafactory": _factory_data, "trl": _trl_data}[name](reader)
    unread = [key for key, value in reader.values.items() if value is not None and key not in reader.read]
    if unread:
        reader.notes.append(f"{path}: not read: {', '.join(unread)}")
    return TrainerFile(path, reader.trainer.title, reader.flags, reader.keys, tuple(reader.notes))


def _plain(reader: _Reader) -> None:
    """What is one key there and one flag here."""
    hints = {**types_of(TrainSettings), "max_length": types_of(DataSettings)["max_length"], "seed": int}
    for key, flag in PLAIN[reader.name].items():
        value = reader.take(key, hints.get(flag, str))
        if flag == "scheduler" and value not in (None, *SCHEDULERS):
            reader.notes.append(
                f"{reader.path}: {key} {value} is not read; {', '.join(SCHEDULERS)} are, and --scheduler says another"
            )
            continue
        reader.put(flag, value, key)


def _adapters(reader: _Reader) -> None:
    """The method, its shape and its modules.

    Raises:
        LayersiftError: neither LoRA nor full fine-tuning.
    """
    trainer, section = reader.trainer, reader.section
    switch = reader.take(trainer.switch, bool if reader.name == "trl" else str)
    keys = (*trainer.names.values(), *trainer.targets)
    adapted = switch in trainer.on if switch is not None else trainer.by_default or any(key in section for key in keys)
    if switch not in (None, False, FULL, *trainer.on):
        right = " or ".join(map(repr, (*trainer.on, FULL)))
        raise LayersiftError(f"{reader.path}: {trainer.switch} is {switch!r}; {right} is right")
    if not adapted:
        reader.put("method", FULL, trainer.switch)
        reader.notes.append(f"{reader.path}: trains no adapters, so that method full is weighed; --method lora is LoRA")
        return
    method = "lora"
    for key, name in ((trainer.names["use_dora"], "dora"), (RSLORA[reader.name], "rslora")):
        if reader.take(key, bool):
            if method != "lora":
                raise LayersiftError(f"{reader.path}: {key} beside DoRA; one of the two can be read")
            method = name
            reader.put("method", name, key)
    if method == "lora":
        reader.put("method", method, trainer.switch)
    _shape(reader)
    wanted = trainer.wanted(section)
    if wanted.modules is None:
        reader.notes.append(f"{reader.path}: names no modules; the default here counts, not PEFT's there")
    else:
        modules = wanted.modules if isinstance(wanted.modules, str) else ",".join(wanted.modules)
        reader.put("target_modules", modules, wanted.key or "target_modules")
    reader.read |= {wanted.key, *(key for key in trainer.targets if section.values.get(key) is False)}


def _shape(reader: _Reader) -> None:
    """Rank, alpha and dropout; what is left open is as the trainer has it."""
    trainer, hints = reader.trainer, types_of(TrainSettings)
    left_open = []
    for flag in ("rank", "alpha", "dropout"):
        key = trainer.names[flag]
        value = reader.take(key, hints[flag])
        if value is None and flag == "alpha" and "scale" in trainer.defaults:
            value = trainer.defaults["scale"] * reader.flags["rank"]
            left_open.append(f"{key} {value:g}")
        elif value is None and flag in trainer.defaults:
            value = trainer.defaults[flag]
            left_open.append(f"{key} {value:g}")
        reader.put(flag, value, key)
    if left_open:
        reader.notes.append(
            f"{reader.path}: left open, so that {trainer.title}'s default counts: {', '.join(left_open)}"
        )


def _memory(reader: _Reader) -> None:
    """Checkpointing, precision and the base's bits."""
    if reader.name == "llamafactory":
        off = reader.take("disable_gradient_checkpointing", bool)
        reader.put("gradient_checkpointing", None if off is None else not off, "disable_gradient_checkpointing")
        bits = reader.take("quantization_bit", int)
        if bits not in (None, 4, 8):
            raise LayersiftError(f"{reader.path}: quantization_bit is {bits}; 4 or 8 can be read")
        reader.put("quantization", None if bits is None else f"{bits}bit", "quantization_bit")
    else:
        reader.put("gradient_checkpointing", reader.take("gradient_checkpointing", bool), "gradient_checkpointing")
        for bits in ("4bit", "8bit"):
            if reader.take(f"load_in_{bits}", bool):
                reader.put("quantization", bits, f"load_in_{bits}")
    for name in ("bf16", "fp16"):
        if isinstance(reader.values.get(name), bool):
            reader.put("precision", name if reader.take(name, bool) else None, name)


def _entry(reader: _Reader, key: str) -> Section | None:
    """The first data set of a list of them."""
    entries = reader.take(key, list[dict[str, Any]])
    if entries is None:
        return None
    if len(entries) > 1:
        reader.notes.append(f"{reader.path}: {key} names {len(entries)} data sets, of which the first is read")
    section = Section(entries[0], f"{reader.path}: {key}[0].")
    path, files = reader.take("path", str, section), reader.take("data_files", str | list[str], section)
    if isinstance(files, list):
        (files, *others) = files
        if others:
            reader.notes.append(f"{reader.path}: {key}[0].data_files names {len(others) + 1} files; the first is read")
    reader.put("data", files or path, key)
    _split(reader, reader.take("split", str, section), key)
    return section


def _split(reader: _Reader, split: str | None, key: str) -> None:
    if split is not None and not _SPLIT.fullmatch(split):
        raise LayersiftError(
            f"{reader.path}: {key}: a part of a split ({split}) cannot be read; --split names a whole one"
        )
    if split != DataSettings.split:  # the default, which a single file need not have
        reader.put("split", split, key)


def _axolotl_data(reader: _Reader) -> None:
    section = _entry(reader, "datasets")
    if section is None:
        return
    for key, flag in AXOLOTL_COLUMNS.items():
        reader.put(flag, reader.take(key, str, section), "datasets")
    kind = section.values.get("type")
    if kind == "completion":
        reader.put("task", "text", "datasets")
    elif isinstance(kind, Mapping):
        fields = Section(kind, f"{section.where}type.")
        for key, flag in AXOLOTL_FIELDS.items():
            reader.put(flag, reader.take(key, str, fields), "datasets")


def _trl_data(reader: _Reader) -> None:
    if reader.section.values.get("datasets") is not None:
        _entry(reader, "datasets")
    reader.put("data", reader.take("dataset_name", str), "dataset_name")
    _split(reader, reader.take("dataset_train_split", str), "dataset_train_split")


def _factory_data(reader: _Reader) -> None:
    """The file that `dataset_info.json` has of a name."""
    names = reader.take("dataset", str | list[str])
    if names is None:
        return
    (name, *others) = [part.strip() for part in names.split(",")] if isinstance(names, str) else names
    if others:
        reader.notes.append(f"{reader.path}: dataset names {len(others) + 1} data sets, of which {name} is read")
    given = Path(reader.take("dataset_dir", str) or "data")
    places = [given, reader.path.parent / given]
    place = next((place for place in places if (place / "dataset_info.json").is_file()), None)
    if place is None:
        reader.notes.append(f"{reader.path}: dataset {name}: no {given}/dataset_info.json here; --data names the rows")
        return
    known = read_json(place / "dataset_info.json", "LLaMA-Factory's list of data sets")
    entry = known.get(name)
    if not isinstance(entry, Mapping):
        raise LayersiftError(f"{reader.path}: dataset {name} is not in {place}/dataset_info.json")
    section = Section(entry, f"{place}/dataset_info.json: {name}.")
    file, hub = reader.take("file_name", str, section), reader.take("hf_hub_url", str, section)
    reader.put("data", str(place / file) if file else hub, "dataset")
    _split(reader, reader.take("split", str, section), "dataset")
    columns = Section(reader.take("columns", dict[str, Any], section) or {}, f"{section.where}columns.")
    for key, flag in FACTORY_COLUMNS.items():
        reader.put(flag, reader.take(key, str, columns), "dataset")


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
    shape, notes = _adapter_shape(trainer, section, given, adapted)
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


def _adapter_shape(
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
