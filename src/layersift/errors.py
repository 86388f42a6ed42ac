"""Errors that a user can act on. The command line prints them as one line and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LayersiftError(ValueError):
    """Something the caller gave cannot be used; the message says what, where, and what would be right."""


class DataError(LayersiftError):
    """The data file or its columns cannot be read as asked."""


class ModelError(LayersiftError):
    """The model cannot be loaded or has no blocks to choose from."""


class SelectionError(LayersiftError):
    """A selection cannot be made, read, or applied to this model."""


class AdapterError(LayersiftError):
    """PEFT would adapt, or has adapted, other modules than the selection names."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> LayersiftError:
    """The error for a name that is not in a table: close matches first, then all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return LayersiftError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
