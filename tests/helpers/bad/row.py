"""A row of the tables of command lines, and how rows are written."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Bad:
    """A command line as typed in the place, and what the error must hold, in any case of letters."""

    command: str
    names: tuple[str, ...]


def rows_of(prefix: str, text: str) -> Iterator[Bad]:
    """A line a case: the rest of the command line, then what is to be named behind a `=>`."""
    for line in text.strip().splitlines():
        rest, _, names = line.partition(" => ")
        yield Bad(f"{prefix}{rest.strip()}", tuple(part.strip() for part in names.split(" & ")))
