"""The arms of a run, as they are written: ``selected``, ``untouched``, baselines, ``top-N``, and ``NAME=MASK``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from layersift.errors import SelectionError, unknown_name

SELECTED, UNTOUCHED, FIRST = "selected", "untouched", "first"
BASELINES = ("all", "random", FIRST, "last")
_TOP = re.compile(r"top-([1-9][0-9]*)")
_DRAW = re.compile(r"random-[01]+")  # a draw's run directory
_MASK = re.compile(r"(?P<name>[a-z][a-z0-9-]*)=(?P<mask>[01]*1[01]*)")


@dataclass(frozen=True)
class Arm:
    """One way of choosing the layers to train."""

    name: str  # ``published`` for ``published=0110``, otherwise the arm as it is written
    top: int | None = None  # so many of the ranking
    mask: str | None = None  # a digit a layer, 1 where it is trained


def parse_arm(text: str, num_layers: int | None = None) -> Arm:
    """The arm that is written so.

    Raises:
        LayersiftError: none of the known forms; the message lists them. Or, where ``num_layers`` is given, a mask of
            another length, or an N beyond it.
    """
    plain = (SELECTED, UNTOUCHED, *BASELINES)
    masked, top = _MASK.fullmatch(text), _TOP.fullmatch(text)
    if masked and (masked["name"] in plain or _TOP.fullmatch(masked["name"]) or _DRAW.fullmatch(masked["name"])):
        raise SelectionError(f"arm {text!r}: {masked['name']!r} has a meaning already; give the mask another name")
    if text not in plain and not masked and not top:
        raise unknown_name("arm", text, (*plain, "top-N", "NAME=MASK"))
    if num_layers is not None and top and int(top[1]) > num_layers:
        raise SelectionError(f"arm {text!r}: there are {num_layers} layers")
    if num_layers is not None and masked and len(masked["mask"]) != num_layers:
        raise SelectionError(
            f"arm {text!r}: the mask has {len(masked['mask'])} digits, but there are {num_layers} layers"
        )
    if masked:
        return Arm(masked["name"], mask=masked["mask"])
    return Arm(text, top=int(top[1]) if top else None)


def sweep_arms(num_layers: int, sizes: str | None = None) -> tuple[str, ...]:
    """The arms of a sweep, ascending: the given sizes, or the powers of two, half of the layers and all of them.

    Raises:
        SelectionError: something else than numbers from 1 to ``num_layers``, separated by commas.
    """
    if sizes is None:
        powers = {2**i for i in range(num_layers.bit_length()) if 2**i < num_layers}
        wanted = powers | {max(1, num_layers // 2), num_layers}
    else:
        parts = [part.strip() for part in sizes.split(",")]
        if not all(part.isdecimal() and 1 <= int(part) <= num_layers for part in parts):
            raise SelectionError(f"--sizes {sizes}: expected numbers from 1 to {num_layers}, separated by commas")
        wanted = {int(part) for part in parts}
    return tuple("all" if n == num_layers else f"top-{n}" for n in sorted(wanted))
