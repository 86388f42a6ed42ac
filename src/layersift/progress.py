"""How long work tells of itself. The library is silent; the command line draws bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Reporter:
    """Takes messages and progress, and keeps them to itself."""

    def say(self, text: str) -> None:
        """A message for people."""

    @contextmanager
    def stage(self, label: str, total: int, unit: str = "samples") -> Iterator[Callable[[int], None]]:
        """A stretch of work of ``total`` units; the callable takes the units done since it was last called."""
        yield lambda done: None
