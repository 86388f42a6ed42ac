"""Layers as people write them: ``20-27,31``, ``last:8``, ``first:4``, ``every:2``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from layersift.errors import SelectionError

GIVEN = "given as "  # the rule of layers that are named so, before the text
FORMS = "20-27,31 or last:8, first:4, every:2"
_RANGE = re.compile(r"(0|[1-9][0-9]{0,5})(?:-(0|[1-9][0-9]{0,5}))?")
_COUNTED = re.compile(r"(first|last|every):([1-9][0-9]{0,5})")
_PART = re.compile(f"{_RANGE.pattern}|{_COUNTED.pattern}")


def towers_of(text: str | None) -> str | None:
    """The towers that a text of lists names, joined by +: ``encoder=8-11 decoder=0-11``; None of one plain list."""
    return None if text is None or "=" not in text else "+".join(lists_of(text))


def lists_of(text: str, where: str = "--layers") -> dict[str, str]:
    """The lists of several stacks of blocks by tower, or by path.

    Raises:
        SelectionError: a part without a tower, or a tower that is named twice.
    """
    lists: dict[str, str] = {}
    for part in text.split():
        tower, equals, layers = part.partition("=")
        if not (tower and equals and layers):
            raise SelectionError(f"{where} {text}: {part!r} names no stack; write encoder=8-11 decoder=0-11")
        if tower in lists:
            raise SelectionError(f"{where} {text}: {tower} is named twice; write {tower}=0-3,8")
        lists[tower] = layers
    return lists


def is_layer_text(text: str) -> bool:
    """Whether each part between commas has one of the forms, whatever layers there are."""
    return all(_PART.fullmatch(part.strip()) for part in text.split(","))


def parse_layers(text: str, num_layers: int, where: str = "--layers") -> tuple[int, ...]:
    """The layers that a text names, ascending; they are counted from 0.

    Args:
        text: parts between commas: an index, a range with both its ends, ``first:N``, ``last:N``, or ``every:N`` for
            layers 0, N, 2N and so on.
        where: what messages call the text.

    Raises:
        SelectionError: another form, a layer that is not there, or one that is named twice.

    Example:
        >>> parse_layers("0-2,last:1", 12)
        (0, 1, 2, 11)
    """
    layers: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        named = _layers_of(part, num_layers, f"{where} {text}")
        if twice := sorted(set(layers).intersection(named)):
            raise SelectionError(f"{where} {text}: layer {twice[0]} is named twice")
        layers += named
    return tuple(sorted(layers))


def _layers_of(part: str, num_layers: int, where: str) -> Sequence[int]:
    """The layers of one part."""
    if counted := _COUNTED.fullmatch(part):
        kind, count = counted[1], int(counted[2])
        if count > num_layers:
            raise SelectionError(f"{where}: there are {num_layers} layers, so that {kind}:{num_layers} is the most")
        first, last, step = {
            "first": (0, count, 1),
            "last": (num_layers - count, num_layers, 1),
            "every": (0, num_layers, count),
        }[kind]
        return range(first, last, step)
    written = _RANGE.fullmatch(part)
    if written is None:
        raise SelectionError(f"{where}: {part!r} names no layer; write {FORMS}")
    low, high = int(written[1]), int(written[2] or written[1])
    if low > high:
        raise SelectionError(f"{where}: {part} runs backwards; write {high}-{low}")
    if high >= num_layers:
        raise SelectionError(f"{where}: there is no layer {high}; the layers are 0 to {num_layers - 1}")
    return range(low, high + 1)


def layers_told(layers: Sequence[int]) -> str:
    """Ascending layers as ranges: ``0-2, 11``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
