"""A fragment as people paste it: YAML or Python, with what it is and how to see that it took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from layersift.config.fields import parse_yaml
from layersift.errors import LayersiftError
from layersift.export.placement import Placement
from layersift.export.trainers import Fragment, Trainer
from layersift.export.yaml_edit import edit
from layersift.provenance import command, versions

INDENT = "    "  # of a call's arguments


def about(trainer: Trainer, placement: Placement, said: Sequence[str] = ()) -> str:
    """What the fragment does and of what it was made, in lines.

    Args:
        said: further lines, such as what the trainer has no key for.
    """
    selection = placement.selection
    layers = ", ".join(map(str, selection.selected_layers))
    counted = f"{len(placement.modules) + len(placement.parameters)} modules"
    trained = f", {placement.trained:,} trained parameters without a head" if placement.trained else ""
    data = f" on {selection.data.source} ({selection.data.fingerprint[:19]})" if selection.data.source else ""
    lines = [
        f"LoRA on layers {layers} of {selection.num_layers} for {trainer.title}: {counted}{trained}.",
        f"{selection.model} ({selection.model_revision}){data}: {selection.rule}.",
        *said,
        f"layersift {versions()['layersift']}: {command()}",
    ]
    return "\n".join(lines)


def as_text(
    trainer: Trainer, placement: Placement, fragment: Fragment, keys: Fragment | None = None, said: Sequence[str] = ()
) -> str:
    """The fragment by itself.

    Args:
        keys: how the training goes, by the trainer's keys or its function's arguments.
        said: see :func:`about`.
    """
    header = "".join(f"# {line}\n" for line in about(trainer, placement, said).splitlines())
    if not trainer.call:
        values = {**(keys or {}), **fragment}
        return header + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10**6)
    text = header + _call(trainer.call, fragment)
    return f"{text}\n{_call(trainer.arguments, keys)}" if keys else text


def _call(call: str, values: Fragment) -> str:
    arguments = "".join(f"\n{INDENT}{name}={_python(value, INDENT)}," for name, value in values.items())
    return call.format(f"{arguments}\n") + "\n"


def into(
    text: str, path: Path, trainer: Trainer, placement: Placement, fragment: Fragment, said: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """An existing config with the fragment in it, and what of it was changed or taken out, in words.

    Args:
        said: see :func:`about`.

    Raises:
        LayersiftError: the config is for another task than the selection, or see
            :func:`layersift.export.yaml_edit.edit`.
    """
    before = parse_yaml(text, str(path))
    inner = before.get(trainer.section) or {} if trainer.section else before
    ours = fragment[trainer.section] if trainer.section else fragment
    for key in trainer.fixed:
        if key in ours and inner.get(key, ours[key]) != ours[key]:
            raise LayersiftError(
                f"{path}: {key} is {inner[key]!r}, and the selection was made for {ours[key]}; take the line out, or "
                "select on data of that task"
            )
    changes = {key: value for key, value in fragment.items() if key != trainer.switch or before.get(key) is None}
    where = f"{path}: {trainer.section}." if trainer.section else f"{path}: "
    layered = [key for key in trainer.superseded if key in inner]
    named = [key for key in trainer.targets if key in inner and key not in ours]
    gone = dict.fromkeys([*layered, *named])
    removed: dict[str, Any] = {trainer.section: gone} if trainer.section else dict(gone)
    notes = [f"{where}{key} {_short(inner[key])} is taken out; it chooses other layers" for key in layered]
    notes += [f"{where}{key} {_short(inner[key])} is taken out; the modules are named in full" for key in named]
    old = [(key, inner[key], value) for key, value in ours.items() if key in inner and key != trainer.switch]
    notes += [f"{where}{key} {_short(was)} becomes {_short(value)}" for key, was, value in old if was != value]
    outer = [key for key in fragment if trainer.section and key != trainer.section and key in changes]
    notes += [
        f"{path}: {key} {_short(before[key])} becomes {_short(fragment[key])}"
        for key in outer
        if key in before and before[key] != fragment[key]
    ]
    return edit(text, path, changes, removed, about(trainer, placement, said)), notes


def _short(value: Any) -> str:
    """A value as a note has room for; of several names the first, and how many there are."""
    if isinstance(value, str) and value.count(",") > 1:
        value = value.split(",")
    if isinstance(value, list | dict) and len(value) > 1:
        return f"({next(iter(value))}, ...: {len(value)} entries)"
    return repr(value)[:60]


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
