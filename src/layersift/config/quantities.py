"""Quantities as people write them: ``2M`` parameters, ``24GB``, ``3h``, ``time=0.6`` of what all layers cost."""

from __future__ import annotations

import re
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
