"""What people write in short: ``2M`` parameters, ``24GB``, ``3h``, ``time=0.6`` of what all layers cost; layers as
``20-27,31``, ``last:8``, ``first:4``, ``every:2``, or a mask.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from layersift.errors import LayersiftError, SelectionError

What = Literal["time", "memory"]
_BYTES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SECONDS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Objective:
    """A share of the cost of training all layers: of its floating-point operations, or of its memory."""

    what: What
    share: float


def parse_objective(text: str) -> Objective:
    """``time=0.6`` or ``memory=0.5``.

    Raises:
        SelectionError: something else, or a share that is not above 0 and at most 1.
    """
    what, equals, value = text.partition("=")
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if what not in ("time", "memory") or not equals or not 0 < share <= 1:
        raise SelectionError(
            f"objective {text!r}: expected time=SHARE or memory=SHARE, a share of all layers' cost up to 1"
        )
    return Objective("time" if what == "time" else "memory", share)


def parameter_count(text: str | int, what: str = "budget-params") -> int:
    """``2M``, ``1.5m``, ``800k`` or ``2000000`` as a number.

    Raises:
        SelectionError: something else, or less than one parameter.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)([kmb]?)", str(text).strip().replace("_", "").lower())
    count = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if count < 1:
        raise SelectionError(f"{what} {text!r}: expected a number of parameters such as 2M, 800k or 2000000")
    return count


def byte_count(text: str, what: str) -> int:
    """``24GB``, ``500 MiB`` as bytes; GB are 10^9, GiB 2^30.

    Raises:
        LayersiftError: something else.
    """
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s*([kmgt]i?b)", text.strip().lower())
    count = round(float(match[1]) * _BYTES[match[2]]) if match else 0
    if count < 1:
        raise LayersiftError(f"{what} {text!r}: expected a size such as 24GB, 500MB or 20MiB")
    return count


def share_of(text: str, what: str) -> float:
    """``10%`` or ``0.1`` as a share, above 0 and at most ten times the whole.

    Raises:
        LayersiftError: something else.
    """
    try:
        share = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 10:
        raise LayersiftError(f"{what} {text!r}: expected a share such as 10% or 0.1")
    return share


def duration(text: str) -> float:
    """``3h``, ``90min`` or ``1h30min`` in seconds.

    Raises:
        LayersiftError: something else.
    """
    parts = re.findall(r"(\d{1,9}(?:\.\d{1,9})?)\s*(d|h|min|m|sec|s)(?=[\d\s]|$)", text.strip().lower())
    whole = re.sub(r"\s", "", text.strip().lower())
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != whole or seconds <= 0:
        raise LayersiftError(f"time {text!r}: expected a share such as 0.6, or a time such as 3h, 90min or 1h30min")
    return seconds


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

    Examples:
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


def layers_of(mask: str) -> tuple[int, ...]:
    """The layers that a mask marks with 1."""
    return tuple(i for i, digit in enumerate(mask) if digit == "1")


def mask_of(layers: Sequence[int], num_layers: int) -> str:
    """A digit a layer, 1 for those that are named."""
    return "".join("1" if i in layers else "0" for i in range(num_layers))
