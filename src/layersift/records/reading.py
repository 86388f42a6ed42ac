"""Records as JSON files: typed, with a version, older ones still read; what each says of its data; the Hub's files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from layersift.config.fields import json_values, read_as
from layersift.config.recipe import Columns, DataSettings, TaskKind
from layersift.data.table import Table, class_counts, read_table, require_effect
from layersift.errors import HUB_REMEDY, DataError, LayersiftError, wrap_library_errors
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


def upload(directory: Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Put a directory's files into a model repository, which is made where there is none; its address.

    Raises:
        LayersiftError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    with wrap_library_errors(
        LayersiftError, f"the Hub did not take {repo!r}", "log in with `hf auth login`, or give a token"
    ):
        api = HfApi(token=token)
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=directory, commit_message="Upload by layersift")
    return str(made)


def download(repo: str, name: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """One file of a model repository, on this disk.

    Raises:
        LayersiftError: there is none, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    with wrap_library_errors(
        LayersiftError, f"cannot get {name} of {repo!r}: no such directory here, nor did the Hub give it", HUB_REMEDY
    ):
        return Path(hf_hub_download(repo, name, revision=revision, token=token))


@dataclass(frozen=True)
class DataRecord:
    """The identity of some data: what was read, how it was read, and a fingerprint of what it held."""

    source: str = ""
    rows: int = 0
    fingerprint: str = ""  # SHA-256 over the columns in use
    kind: TaskKind | None = None
    columns: dict[str, str] = field(default_factory=dict)  # by what they hold
    classes: dict[str, int] = field(default_factory=dict)  # of a classification, with the number of rows of each
    left_out: str = ""  # what was cut, and which rows were left out, in words


def describe(table: Table, left_out: str = "") -> DataRecord:
    """The record of a table."""
    return DataRecord(
        source=table.source,
        rows=len(table.rows),
        fingerprint=f"sha256:{table.fingerprint}",
        kind=table.kind,
        columns=table.columns.by_role(),
        classes=class_counts(table),
        left_out=left_out,
    )


def read_as_recorded(settings: DataSettings, record: DataRecord) -> Table | None:
    """The rows with the columns that a record of them has, where no columns are given and the data are the same."""
    if settings.columns() != Columns() or settings.task is not None or not record.columns:
        return None
    try:
        table = read_table(settings.data, Columns(**record.columns), record.kind, settings.split)
    except DataError:  # other data, of which the record says nothing
        return None
    if f"sha256:{table.fingerprint}" != record.fingerprint:
        return None
    require_effect(settings, table)
    return table
