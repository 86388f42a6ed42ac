"""Another trainer's YAML as flags of ours: model, data, adapters and how they are trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersift.config.fields import read_yaml, types_of
from layersift.config.inputs import DataSettings
from layersift.config.train import FULL, SCHEDULERS, TrainSettings
from layersift.errors import LayersiftError
from layersift.export.trainers import TRAINERS, Trainer
from layersift.export.wanted import Section
from layersift.files import read_json

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
