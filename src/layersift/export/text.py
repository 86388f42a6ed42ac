"""A fragment as people paste it: YAML or Python, with what it is and how to see that it took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from layersift.config.yaml_files import parse_yaml
from layersift.errors import LayersiftError
from layersift.export.placement import Placement
from layersift.export.trainers import Fragment, Trainer
from layersift.export.yaml_edit import edit
from layersift.provenance import command, versions

INDENT = "    "  # of a call's arguments


def about(trainer: Trainer, placement: Placement) -> str:
    """What the fragment does and of what it was made, in lines."""
    selection = placement.selection
    layers = ", ".join(map(str, selection.selected_layers))
    counted = f"{len(placement.modules) + len(placement.parameters)} modules"
    trained = f", {placement.trained:,} trained parameters without a head" if placement.trained else ""
    data = f" on {selection.data.source} ({selection.data.fingerprint[:19]})" if selection.data.source else ""
    lines = [
        f"LoRA on layers {layers} of {selection.num_layers} for {trainer.title}: {counted}{trained}.",
        f"{selection.model} ({selection.model_revision}){data}: {selection.rule}.",
        f"layersift {versions()['layersift']}: {command()}",
    ]
    return "\n".join(lines)


def as_text(trainer: Trainer, placement: Placement, fragment: Fragment) -> str:
    """The fragment by itself."""
    header = "".join(f"# {line}\n" for line in about(trainer, placement).splitlines())
    if not trainer.call:
        return header + yaml.safe_dump(fragment, sort_keys=False, allow_unicode=True, width=10**6)
    arguments = "".join(f"\n{INDENT}{name}={_python(value, INDENT)}," for name, value in fragment.items())
    return header + trainer.call.format(f"{arguments}\n") + "\n"


def into(text: str, path: Path, trainer: Trainer, placement: Placement, fragment: Fragment) -> tuple[str, list[str]]:
    """An existing config with the fragment in it, and what of it was changed or taken out, in words.

    Raises:
        LayersiftError: the trainer reads no YAML, or see :func:`layersift.export.yaml_edit.edit`.
    """
    if trainer.call:
        raise LayersiftError(f"--into {path}: what {trainer.title} is told is Python; paste it without --into")
    before = parse_yaml(text, str(path))
    before = before if isinstance(before, Mapping) else {}
    kept = {key for key, accepted in trainer.accepted.items() if before.get(key) in accepted}
    changes = {key: value for key, value in fragment.items() if key not in kept}
    inner = before.get(trainer.section) if trainer.section else before
    inner = inner if isinstance(inner, Mapping) else {}
    ours = fragment[trainer.section] if trainer.section else fragment
    gone = {key: None for key in trainer.superseded if key in inner and key not in ours}
    removed: dict[str, Any] = {trainer.section: gone} if trainer.section else dict(gone)
    notes = [f"{path}: {key} {_short(inner[key])} is taken out; it adapts other modules" for key in gone]
    old = [(key, inner[key], value) for key, value in ours.items() if key in inner and key not in kept]
    notes += [f"{path}: {key} {_short(was)} becomes {_short(value)}" for key, was, value in old if was != value]
    return edit(text, path, changes, removed, about(trainer, placement)), notes


def _short(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, list | dict) else repr(value)[:60]


def _python(value: Any, indent: str) -> str:
    """A value as Python source; lists and dicts with a line for each entry."""
    if isinstance(value, Mapping) and value:
        rows = [f"{indent}    {_python(key, '')}: {inner!r},\n" for key, inner in value.items()]
        return "{\n" + "".join(rows) + indent + "}"
    if isinstance(value, list) and len(value) > 1:
        return "[\n" + "".join(f"{indent}    {_python(entry, '')},\n" for entry in value) + indent + "]"
    if isinstance(value, list) and value:
        return f"[{_python(value[0], '')}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)
