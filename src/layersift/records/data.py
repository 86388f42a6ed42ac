"""What an artefact says of the data it was made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from layersift.config.data import TaskKind
from layersift.load.data import Table, class_counts


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
