"""Records as JSON files: typed on the way in, with a version, and older versions still read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from layersift.config.fields import json_values, read_as
from layersift.errors import LayersiftError
from layersift.files import read_json

SCHEMA_VERSION = 2
# What version 1 of a record left to the reader has a default since, so that its files are read as they are.
READABLE = (1, 2)
T = TypeVar("T")


def to_json(record: Any) -> dict[str, Any]:
    """A record as JSON values, the schema version first."""
    values: dict[str, Any] = json_values(record)
    return {"schema_version": SCHEMA_VERSION} | values


def read_record(cls: type[T], path: Path, what: str, key: str) -> T:
    """The record that a JSON file holds; see :func:`read_values`.

    Raises:
        LayersiftError: what that raises; or a field that this layersift does not know, or that is of another type.
    """
    return read_as(cls, read_values(path, what, key), str(path))


def read_values(path: Path, what: str, key: str) -> dict[str, Any]:
    """The values of a record's JSON file, of a version that can be read.

    Args:
        what: the kind of file, for messages: "a selection file".
        key: a field that files of this kind have, so that others can be told from them.

    Raises:
        LayersiftError: no such file, another kind of file, or a version that this layersift does not know.
    """
    values = read_json(path, what)
    version = values.pop("schema_version", None)
    if version is None or key not in values:
        raise LayersiftError(f"{path}: not {what} (no schema_version and {key})")
    if version not in READABLE:
        raise LayersiftError(
            f"{path}: {what} of schema version {version!r}; this layersift reads versions "
            f"{' and '.join(map(str, READABLE))}. Update layersift, or make the file again with this one."
        )
    return values
