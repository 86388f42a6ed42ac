"""What an artefact says of the data it was made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from layersift.config.inputs import Columns, DataSettings, TaskKind
from layersift.data.table import Table, class_counts, read_table, require_effect
from layersift.errors import DataError


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
