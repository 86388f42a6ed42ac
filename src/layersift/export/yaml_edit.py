"""Change some keys of a YAML text and leave every other byte of it as it is: comments, order, quotes, blank lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from layersift.config.fields import YAML_REMEDY, parse_yaml
from layersift.errors import LayersiftError, wrap_library_errors

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
