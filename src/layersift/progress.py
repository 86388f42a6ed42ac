"""How long work tells of itself. The library is silent; the command line draws bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def time_told(seconds: float) -> str:
    """A length of time for people, in the largest unit of which it is one and a half at least."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Reporter:
    """Takes messages and progress, and keeps them to itself."""

    draws_bars = False  # whether a stage is seen while it goes on; a log has a line at its start

    def say(self, text: str) -> None:
        """A message for people."""

    @contextmanager
    def stage(self, label: str, total: int, unit: str = "samples") -> Iterator[Callable[[int], None]]:
        """A stretch of work of ``total`` units; the callable takes the units done since it was last called."""
        yield lambda done: None
