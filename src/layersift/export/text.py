"""A fragment as people paste it, YAML or Python; or edits of a YAML file that leave every other byte as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from layersift.config.fields import YAML_REMEDY, parse_yaml
from layersift.errors import LayersiftError, wrap_library_errors
from layersift.export.source import Placement
from layersift.export.trainers import Fragment, Trainer
from layersift.provenance import command, versions

Values = Mapping[str, Any]


def edit(text: str, path: Path, changes: Values, removed: Mapping[str, Any], about: str) -> str:
    """The text of a mapping with other values for some keys, which are added at its end where they are not there.

    A mapping as a value changes the keys of the one that is there.

    Args:
        path: of the text, for messages.
        removed: keys that go, each with None or, for a mapping, with what goes of it.
        about: put before the changes, as a comment.

    Raises:
        LayersiftError: the text is no block mapping, or could not be changed without changing more of it.
    """
    with wrap_library_errors(LayersiftError, f"{path}: not YAML", YAML_REMEDY):
        root = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise LayersiftError(f"{path}: expected keys and values, one a line, to add to")
    lines, before = text.splitlines(), parse_yaml(text, str(path))
    edits = _edits(lines, root, before, len(lines), changes, removed)
    first = min(edits, key=lambda e: e[0])[0] if edits else len(lines)
    in_order = sorted(edits, key=lambda e: (e[0], e[1]))  # what is added to an inner mapping comes before the outer's
    for start, end, new in reversed(in_order):
        lines[start:end] = new
    lines[first:first] = [f"# {line}" for line in about.splitlines()]
    edited = "\n".join(lines) + "\n"
    if parse_yaml(edited, str(path)) != merged(before, changes, removed):
        raise LayersiftError(f"{path}: too intricate to be changed (anchors, several keys a line); write it plainly")
    return edited


def merged(before: Values, changes: Values, removed: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a mapping after the change."""
    result = {key: value for key, value in before.items() if removed.get(key, before) is not None}
    for key, value in changes.items():
        there = result.get(key)
        inner = isinstance(value, Mapping) and isinstance(there, Mapping)
        result[key] = merged(there, value, removed.get(key) or {}) if inner and there is not None else value
    return result


def _edits(
    lines: list[str], node: yaml.MappingNode, before: Values, end: int, changes: Values, removed: Mapping[str, Any]
) -> list[tuple[int, int, list[str]]]:
    """Which lines make way for which others, of a block mapping with these values that ends before a line."""
    edits: list[tuple[int, int, list[str]]] = []
    indent = node.value[0][0].start_mark.column if node.value else 0
    starts = [key.start_mark.line for key, _ in node.value]
    there: set[str] = set()
    for (key, value), start, after in zip(node.value, starts, [*starts[1:], end], strict=True):
        there.add(key.value)
        gone = key.value in removed and removed[key.value] is None
        if key.value not in changes and not gone:
            continue
        stop = _without_comments(lines, start, after)
        old, new = before.get(key.value), changes.get(key.value)
        if gone:
            edits.append((start, stop, []))
        elif isinstance(new, Mapping) and isinstance(value, yaml.MappingNode) and not value.flow_style:
            edits += _edits(lines, value, old or {}, stop, new, removed.get(key.value) or {})
        elif old != new:
            if isinstance(new, Mapping) and isinstance(old, Mapping):
                new = merged(old, new, removed.get(key.value) or {})
            edits.append((start, stop, _line_of(key.value, new, value, lines[start], indent)))
    fresh = {key: value for key, value in changes.items() if key not in there}
    if fresh:
        place = _without_comments(lines, starts[-1], end) if starts else end
        edits.append((place, place, _dumped(fresh, indent)))
    return edits


def _without_comments(lines: list[str], start: int, end: int) -> int:
    """The end of what begins at a line, without the comments and blank lines that belong to what comes after."""
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    return end


def _line_of(key: str, value: Any, before: yaml.Node, line: str, indent: int) -> list[str]:
    """A key with another value; a comment behind a number or a word stays."""
    plain = isinstance(before, yaml.ScalarNode) and before.start_mark.line == before.end_mark.line
    if plain and not isinstance(value, list | Mapping):
        dumped = _dumped({key: value}, 0)[0].partition(": ")[2]
        return [line[: before.start_mark.column] + dumped + line[before.end_mark.column :]]
    return _dumped({key: value}, indent)


def _dumped(values: Values, indent: int) -> list[str]:
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=10**6)
    return [" " * indent + line for line in text.splitlines()]


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
            :func:`layersift.export.text.edit`.
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
