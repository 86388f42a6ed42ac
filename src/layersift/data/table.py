"""A table of samples: its rows with the columns that hold them, the kind of task, and its labels."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from layersift.config.recipe import Columns, DataSettings, TaskKind
from layersift.data.columns import find_columns, names_of
from layersift.data.images import ClassName, Row, image_bytes, plain_rows, require_whole
from layersift.data.rows import read_rows
from layersift.errors import DataError, closest, listed

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


def read_alike(source: str, columns: Columns, kind: TaskKind, split: str = "train") -> Table:
    """Read ``source`` by the columns of the rows trained on.

    Raises:
        DataError: it lacks one of them; or see :func:`read_table`.
    """
    rows = read_rows(source, split)
    names = names_of(rows)
    if (missing := next((name for name in columns.used() if name not in names), None)) is not None:
        close = closest(missing, names)
        raise DataError(
            f"{source} has no column {missing!r}, which the rows trained on have."
            + (f" Did you mean {close!r}? Rename it." if close else "")
            + f" It has: {listed(map(repr, names), 160)}"
        )
    return table_of(rows, source, columns, kind)


def table_of(rows: list[Row], source: str, given: Columns | None = None, kind: TaskKind | None = None) -> Table:
    """A table from rows already in memory; see :func:`read_table`."""
    source = os.fspath(source)
    if not rows:
        raise DataError(f"{source}: no rows")
    if not all(isinstance(row, dict) for row in rows):
        wrong = next(row for row in rows if not isinstance(row, dict))
        raise DataError(f"{source}: rows are to be dicts such as {{'text': ...}}, got {type(wrong).__name__}")
    rows = plain_rows(rows)
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
                raise DataError(f"{source}, row {number}: column {name!r} is empty; leave such rows out")
    kept, numbers = tuple(row for _, row in numbered), tuple(number for number, _ in numbered)
    if columns.messages or columns.prompt:
        return _keep_preferred(Table(kept, source, "instruction", columns, without_image, numbers=numbers))
    if columns.label is None:
        return Table(kept, source, "text", columns, numbers=numbers)
    label = columns.label
    values = read_labels([row[label] for row in kept], kind, label, lambda i: f"{source}, row {numbers[i]}")
    labelled = tuple({**row, label: value} for row, value in zip(kept, values, strict=True))
    return Table(labelled, source, kind or kind_of_labels(values, source), columns, without_image, numbers=numbers)


def _keep_preferred(table: Table) -> Table:
    """Of unpaired preferences (TRL's for KTO: a prompt, a completion, and whether it is wanted) those that are wanted.

    Raises:
        DataError: none is.
    """
    label = next((name for name in names_of(table.rows) if name.lower() == "label"), None)
    if label is None or label in table.columns.used():
        return table
    if not all(isinstance(row.get(label), bool) for row in table.rows):
        return table
    preferred = [place for place, row in enumerate(table.rows) if row[label]]
    if not preferred:
        raise DataError(f"{table.source}: column {label!r} is false in every row, so that no response is wanted")
    return replace(table.take(preferred), unwanted=len(table.rows) - len(preferred))


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
    if all(isinstance(value, ClassName) for value in counts):
        return {str(value): counts[value] for value in sorted(counts, key=lambda value: value.place)}
    ordered = sorted(counts, key=lambda v: (isinstance(v, str), v if isinstance(v, str) else "", v))
    return {str(value): counts[value] for value in ordered}


def class_names(table: Table, head: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes of a classification table, in the order of their indices.

    That is the order of ``head``, the classes that the model's own head knows, where they are the same; else numbers
    by value, texts by spelling, and names that the source has numbered in that order.

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
    if set(counts) <= set(map(str, range(len(head)))):  # numbers are the head's places
        log.warning(
            "labels %s are taken for the places of the model's head, which calls them %s; give names where they differ",
            listed(counts, 40),
            listed(head, 80),
        )
    elif len(head) == len(counts):
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


def read_data(settings: DataSettings) -> Table:
    """The rows with their columns settled.

    Raises:
        DataError: the data cannot be read, hold fewer than 8 rows, or a single class; or see :func:`require_effect`.
    """
    table = read_table(settings.data, settings.columns(), settings.task, settings.split)
    require_rows(table)
    require_effect(settings, table)
    if table.kind == "classification":
        class_names(table)
    return table


def require_effect(settings: DataSettings, table: Table) -> None:
    """Refuse settings that the data have no use for.

    Raises:
        DataError: a chat template for something else than conversations, or a length in tokens for images alone.
    """
    if settings.chat_template is not None and table.kind != "instruction":
        what = f"chat-template {settings.chat_template}"
        raise DataError(f"{what} has no effect on {table.source}, a {table.kind} task; leave it away")
    if settings.max_length != DataSettings.max_length and table.columns.image and table.kind != "instruction":
        raise DataError(f"max-length has no effect on {table.source}, whose samples are images alone; leave it away")


def classes_of(table: Table, config: Any) -> tuple[str, ...]:
    """The classes of a classification, in the order that the head of a model of this configuration has; else none.

    Raises:
        DataError: a single class.
    """
    return class_names(table, head_names(config)) if table.kind == "classification" else ()


GENERIC = re.compile(r"LABEL_\d+")  # what transformers calls a class that nobody has named
MOST_CLASSES = 20  # of whole numbers, where nobody says that they are classes
UNLABELLED = (-1, -100)  # as SNLI and its kin, and PyTorch, mark a row that has no label


def read_labels(values: Sequence[Any], kind: TaskKind | None, column: str, where: Callable[[int], str]) -> list[Any]:
    """The labels, numbers where each spells one; those of a .csv file are text.

    Args:
        where: source and number of a row, for messages.

    Raises:
        DataError: one is empty, not finite, or a list; or two spellings would be one class.
    """
    for row, value in enumerate(values):
        if isinstance(value, list | dict):
            raise DataError(
                f"{where(row)}: column {column!r} holds {repr(value)[:60]}; a class or a number is needed: several "
                "labels a row (multi-label) are not supported"
            )
        if not isinstance(value, str | int | float):
            raise DataError(f"{where(row)}: column {column!r} holds {repr(value)[:60]}; a text or a number is needed")
        if isinstance(value, str) and not value.strip():
            raise DataError(f"{where(row)}: column {column!r} is empty; leave out rows without a label")
        if isinstance(value, str):
            require_whole(value, f"{where(row)}, column {column!r}")
        number = _number(value)
        if number is not None and not abs(number) < sys.float_info.max:  # NaN is not, either
            raise DataError(
                f"{where(row)}: column {column!r} holds {repr(value)[:60]}, no label; leave out rows without one"
            )
    numbers = [_number(value) for value in values]
    if kind == "regression" and None in numbers:
        row = numbers.index(None)
        raise DataError(f"{where(row)}: column {column!r} holds {repr(values[row])[:60]}; regression needs numbers")
    read = [value if number is None else number for value, number in zip(values, numbers, strict=True)]
    if kind == "regression" or (kind is None and None not in numbers and not all(float(n).is_integer() for n in read)):
        return read
    return _classes(values, numbers, column, where)


def _number(value: Any) -> int | float | None:
    """What a value is or spells as a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return None
    whole = value.strip().lstrip("+-").isdigit() and abs(number) < sys.float_info.max
    return int(value) if whole else number


def _classes(values: Sequence[Any], numbers: Sequence[Any], column: str, where: Callable[[int], str]) -> list[Any]:
    """Labels of classes: numbers where all are spelled as numbers are, else as they stand."""
    truths = [isinstance(value, bool) for value in values]
    if any(truths) and not all(truths):
        a, b = sorted((truths.index(True), truths.index(False)))
        raise DataError(
            f"{where(a)} and {where(b)}: column {column!r} holds {values[a]!r} and {values[b]!r}, not alike"
        )
    first: dict[Any, int] = {}
    for row, value in enumerate(values):
        first.setdefault((type(value) is str, type(value) is bool, value), row)
    met: dict[Any, int] = {}
    for row in first.values():
        value, number = values[row], numbers[row]
        key = _looks(str(value)) if number is None else str(float(number))
        other = met.setdefault(key, row)
        if other != row and _written_differently(values[other], value):
            raise DataError(
                f"{where(other)} and {where(row)}: column {column!r} holds {values[other]!r} and {value!r}; write one "
                "class in one way, and two in ways that differ in more than their spelling"
            )
    _tell_cases(met, column, where)
    if all(number is not None for number in numbers):
        whole = {number for number in numbers if number is not None}
        if (mark := next((mark for mark in UNLABELLED if mark in whole), None)) is not None and 0 in whole:
            row = numbers.index(mark)
            raise DataError(
                f"{where(row)}: column {column!r} holds {mark} beside 0, the mark of rows without a label; leave them "
                f"out ({numbers.count(mark)} rows), or name the classes in words"
            )
        if all(not isinstance(v, str) or str(n) == v.strip() for v, n in zip(values, numbers, strict=True)):
            # 1.0 and 1 are one class, whichever of them a file has.
            return [int(number) if number is not None and float(number).is_integer() else number for number in numbers]
    return list(values)  # "01" is the name of a class, and stays so


def _looks(text: str) -> str:
    """What is seen of a text: letters by their meaning, white space as one blank, nothing of what has no width."""
    shown = unicodedata.normalize("NFKC", "".join(letter for letter in text if unicodedata.category(letter) != "Cf"))
    return " ".join(shown.split())


def _tell_cases(rows: Mapping[str, int], column: str, where: Callable[[int], str]) -> None:
    """Say where classes differ in the case of their letters alone: they may be one."""
    spelled: dict[str, str] = {}
    for name, row in rows.items():
        other = spelled.setdefault(name.casefold(), name)
        if other != name:
            log.warning("%s: column %r holds %r and %r, which are two classes", where(row), column, other, name)


def _written_differently(a: Any, b: Any) -> bool:
    """Whether two values of one meaning are written in two ways; numbers that are equal are not."""
    return isinstance(a, str) or isinstance(b, str) or isinstance(a, bool) != isinstance(b, bool)


def kind_of_labels(values: Sequence[Any], source: str) -> TaskKind:
    """Classification or regression, by what the labels are.

    Raises:
        DataError: both are possible.
    """
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        if len(values) > MOST_CLASSES and len(set(values)) == len(values):
            raise DataError(
                f"{source}: no two of {len(values)} rows have one label ({repr(values[0])[:40]}, ...), so that "
                "there is no class to learn. Numbers are written as 0.5; texts to write are given by --response-column."
            )
        return "classification"
    if any(isinstance(v, float) and not v.is_integer() for v in numbers):
        return "regression"
    classes = len(set(numbers))
    if classes > MOST_CLASSES and classes > len(values) / 20:
        raise DataError(
            f"{source} can be read in 2 ways: as classification with {classes} classes, or as regression on whole "
            "numbers. Say which with --task."
        )
    return "classification"


def has_head(config: Any, outputs: int) -> bool:
    """Whether the checkpoint of this configuration has a head of so many outputs; another makes way for a new one."""
    named = any("Classification" in name for name in getattr(config, "architectures", None) or ())
    return named and len(getattr(config, "id2label", None) or {}) == outputs


def head_names(config: Any) -> tuple[str, ...]:
    """The classes of a model's trained head in the order of its outputs; none where nobody has named them."""
    named = getattr(config, "id2label", None) or {}
    names = tuple(str(named[index]) for index in sorted(named))
    return names if has_head(config, len(names)) and not any(GENERIC.fullmatch(name) for name in names) else ()


def names_of_outputs(classes: Sequence[str], config: Any) -> tuple[str, ...]:
    """What a trained head's outputs are called: as the model has them, where the data know them by their places."""
    head = head_names(config)
    return head if tuple(classes) == tuple(map(str, range(len(head)))) else tuple(classes)
