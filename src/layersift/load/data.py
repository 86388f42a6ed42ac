"""Which columns of a data source hold what, and the kind of task that follows."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from layersift.config.inputs import Columns, TaskKind
from layersift.errors import DataError, listed
from layersift.load.columns import find_columns, names_of
from layersift.load.images import image_bytes
from layersift.load.labels import MOST_CLASSES, kind_of_labels, read_labels
from layersift.load.rows import Row, read_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """The rows of a data source with the columns' roles settled."""

    rows: tuple[Row, ...]
    source: str
    kind: TaskKind
    columns: Columns
    without_image: int = 0  # rows left out because their image is missing
    unwanted: int = 0  # rows left out because their response is not to be given (KTO's label)
    numbers: tuple[int, ...] = ()  # of each row in the source, counted from 1; none: as they stand here

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the columns in use of every row, in order: equal data in another format is equal.

        Of an image its file's bytes count, wherever they are kept.
        """
        digest = hashlib.sha256()
        image = self.columns.image
        used = [name for name in self.columns.used() if name != image]
        for row in self.rows:
            digest.update(json.dumps([row.get(name) for name in used], default=str).encode())
            if image:
                given = row.get(image)
                for each in given if isinstance(given, list) else [given]:
                    digest.update(image_bytes(each, self.source) if each is not None else b"")
        return digest.hexdigest()

    def described(self) -> str:
        """Kind of task and columns, for the screen."""
        used = self.columns.used()
        unused = [repr(name) for name in names_of(self.rows) if name not in used]
        notes = [f"; not used: {', '.join(unused)}"] * bool(unused)
        notes += [f"; {self.without_image} rows without an image left out"] * bool(self.without_image)
        notes += [f"; {self.unwanted} rows left out whose 'label' is false: what is not wanted"] * bool(self.unwanted)
        if counts := class_counts(self):
            notes.append(f"; {len(counts)} classes: {listed((f'{name} ({n})' for name, n in counts.items()), 200)}")
        if self.kind == "regression" and self.columns.label:
            notes.append(f"; {_numbers_described([row[self.columns.label] for row in self.rows])}")
        return f"{self.kind}: {self.columns.described()}{''.join(notes)}"

    def where(self, index: int) -> str:
        """The source and the number that row ``index`` has there, for messages."""
        return f"{self.source}, row {self.numbers[index] if self.numbers else index + 1}"

    def followed_by(self, other: Table) -> Table:
        """These rows and then those of another table of the same source, which keep their numbers."""
        mine, theirs = (t.numbers or tuple(range(1, len(t.rows) + 1)) for t in (self, other))
        return replace(self, rows=self.rows + other.rows, numbers=(*mine, *theirs))

    def take(self, indices: Iterable[int]) -> Table:
        """The table with these rows only, which keep their numbers."""
        chosen = list(indices)
        numbers = self.numbers or range(1, len(self.rows) + 1)
        return replace(self, rows=tuple(self.rows[i] for i in chosen), numbers=tuple(numbers[i] for i in chosen))


def read_table(source: str, given: Columns | None = None, kind: TaskKind | None = None, split: str = "train") -> Table:
    """Read ``source`` and settle its columns and kind of task.

    Raises:
        DataError: the source, a column or a cell is missing, or more than one reading is possible.
    """
    return table_of(read_rows(source, split), source, given, kind)


def table_of(rows: list[Row], source: str, given: Columns | None = None, kind: TaskKind | None = None) -> Table:
    """A table from rows already in memory; see :func:`read_table`."""
    source = os.fspath(source)
    if not rows:
        raise DataError(f"{source}: no rows")
    if not all(isinstance(row, dict) for row in rows):
        wrong = next(row for row in rows if not isinstance(row, dict))
        raise DataError(f"{source}: rows are to be dicts such as {{'text': ...}}, got {type(wrong).__name__}")
    columns = find_columns(rows, given or Columns(), source, kind)
    numbered = list(enumerate(rows, start=1))
    if columns.image and not columns.messages:  # ScienceQA, for one, has questions with and without
        numbered = [(number, row) for number, row in numbered if row.get(columns.image) not in (None, [])]
    without_image = len(rows) - len(numbered)
    if not numbered:
        raise DataError(f"{source}: column {columns.image!r} is empty in every row")
    needed = [name for name in columns.needed() if not (columns.messages and name == columns.image)]
    for number, row in numbered:
        for name in needed:
            if row.get(name) is None:
                raise DataError(f"{source}, row {number}: column {name!r} is empty")
    kept, numbers = tuple(row for _, row in numbered), tuple(number for number, _ in numbered)
    if columns.messages or columns.prompt:
        return _wanted(Table(kept, source, "instruction", columns, without_image, numbers=numbers))
    if columns.label is None:
        return Table(kept, source, "text", columns, numbers=numbers)
    label = columns.label
    values = read_labels([row[label] for row in kept], kind, label, lambda i: f"{source}, row {numbers[i]}")
    labelled = tuple({**row, label: value} for row, value in zip(kept, values, strict=True))
    return Table(labelled, source, kind or kind_of_labels(values, source), columns, without_image, numbers=numbers)


def _wanted(table: Table) -> Table:
    """Of unpaired preferences (TRL's for KTO: a prompt, a completion, and whether it is wanted) those that are wanted.

    Raises:
        DataError: none is.
    """
    label = next((name for name in names_of(table.rows) if name.lower() == "label"), None)
    if label is None or label in table.columns.used():
        return table
    if not all(isinstance(row.get(label), bool) for row in table.rows):
        return table
    wanted = [place for place, row in enumerate(table.rows) if row[label]]
    if not wanted:
        raise DataError(f"{table.source}: column {label!r} is false in every row, so that no response is wanted")
    return replace(table.take(wanted), unwanted=len(table.rows) - len(wanted))


def _numbers_described(values: Sequence[float]) -> str:
    different = sorted(set(values))
    said = f"{len(different)} different numbers from {different[0]:g} to {different[-1]:g}"
    few = len(different) <= MOST_CLASSES and 2 * len(different) <= len(values)
    return f"{said}, which --task classification reads as classes" if few else said


def class_counts(table: Table) -> dict[str, int]:
    """How many rows each class has, numbers by value, texts by spelling; empty for other kinds of task."""
    if table.kind != "classification":
        return {}
    counts = Counter(row[table.columns.label] for row in table.rows if table.columns.label)
    ordered = sorted(counts, key=lambda v: (isinstance(v, str), v if isinstance(v, str) else "", v))
    return {str(value): counts[value] for value in ordered}


def class_names(table: Table, head: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes of a classification table, in the order of their indices.

    That is the order of ``head``, the classes that the model's own head knows, where they are the same; else numbers
    by value, and texts by spelling.

    Raises:
        DataError: fewer than two classes.
    """
    counts = class_counts(table)
    if len(counts) < 2:
        raise DataError(
            f"{table.source}: column {table.columns.label!r} holds one class only ({next(iter(counts), None)!r}); two "
            "are needed"
        )
    if not head:
        return tuple(counts)
    spelled = {name.lower(): name for name in counts}
    if {name.lower() for name in head} >= set(spelled) and len(spelled) == len(counts):
        return tuple(spelled.get(name.lower(), name) for name in head)
    if len(head) == len(counts) and set(counts) != set(map(str, range(len(head)))):  # numbers are the head's places
        log.warning(
            "the model's head knows %s, the data have %s: numbered by spelling; what the head has learned does not fit",
            listed(head, 80),
            listed(counts, 80),
        )
    return tuple(counts)


def require_rows(table: Table, fewest: int = 8) -> None:
    """Refuse data that is too small to say anything.

    Raises:
        DataError: fewer than ``fewest`` rows.
    """
    if len(table.rows) < fewest:
        raise DataError(f"{table.source}: {len(table.rows)} samples; at least {fewest} are needed")
