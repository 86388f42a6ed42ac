"""What stands in the place of a score that a layer does not have."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Undefined:
    """In the place of a layer's score: why there is none."""

    why: str


def is_number(value: float | Undefined) -> bool:
    """Whether there is a score."""
    return not isinstance(value, Undefined) and math.isfinite(value)
