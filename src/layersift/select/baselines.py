"""Choices of layers to hold a selection against: plain ones, shorter and longer rankings, and masks given by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from layersift.errors import SelectionError, unknown_name
from layersift.select.selection import Selection


def _random(selection: Selection, seed: int) -> list[int]:
    """As many layers as were selected, drawn by the seed, other than the selected ones where that is possible."""
    generator = np.random.default_rng(seed)
    count, layers = len(selection.selected_layers), selection.num_layers
    while True:
        drawn = sorted(int(i) for i in generator.choice(layers, count, replace=False))
        if count == layers or tuple(drawn) != selection.selected_layers:
            return drawn


BASELINES: dict[str, Callable[[Selection, int], list[int]]] = {
    "all": lambda selection, seed: list(range(selection.num_layers)),
    "random": _random,
    "first": lambda selection, seed: list(range(len(selection.selected_layers))),
    "last": lambda s, seed: list(range(s.num_layers - len(s.selected_layers), s.num_layers)),
}
_TOP = re.compile(r"top-([1-9][0-9]*)")
_MASK = re.compile(r"(?P<name>[a-z][a-z0-9-]*)=(?P<mask>[01]*1[01]*)")


def arm_name(arm: str) -> str:
    """What an arm is called: ``published`` for ``published=0110``, otherwise the arm itself."""
    return arm.partition("=")[0]


def check_arm(arm: str, num_layers: int | None = None) -> None:
    """Refuse what is no arm: ``selected``, ``untouched``, a baseline, ``top-N``, or ``NAME=MASK``.

    Raises:
        LayersiftError: none of these; the message lists them. Or, where ``num_layers`` is given, a mask of another
            length, or an N beyond it.
    """
    plain = ("selected", "untouched", *BASELINES)
    masked = _MASK.fullmatch(arm)
    if masked and (masked["name"] in plain or _TOP.fullmatch(masked["name"])):
        raise SelectionError(f"arm {arm!r}: {masked['name']!r} has a meaning already; give the mask another name")
    top = _TOP.fullmatch(arm)
    if arm not in plain and not masked and not top:
        raise unknown_name("arm", arm, (*plain, "top-N", "NAME=MASK"))
    if num_layers is not None and top and int(top[1]) > num_layers:
        raise SelectionError(f"arm {arm!r}: there are {num_layers} layers")
    if num_layers is not None and masked and len(masked["mask"]) != num_layers:
        raise SelectionError(
            f"arm {arm!r}: the mask has {len(masked['mask'])} digits, but there are {num_layers} layers"
        )


def baseline(arm: str, selection: Selection, seed: int) -> Selection:
    """The selection with its layers replaced by those of the arm.

    ``top-N`` are the first N of the ranking as it stands, filled up with the lowest layers where the ranking is
    shorter; ``NAME=MASK`` are the layers marked 1.

    Raises:
        SelectionError: a mask of another length, or an N beyond the number of layers.
    """
    check_arm(arm, selection.num_layers)
    layers: list[int]
    if top := _TOP.fullmatch(arm):
        rest = [i for i in range(selection.num_layers) if i not in selection.ranking]
        layers = sorted([*selection.ranking, *rest][: int(top[1])])
    elif masked := _MASK.fullmatch(arm):
        layers = [i for i, digit in enumerate(masked["mask"]) if digit == "1"]
    else:
        layers = BASELINES[arm](selection, seed)
    return replace(selection, selected_layers=tuple(layers), rule=f"arm: {arm_name(arm)}", compat=None)


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
