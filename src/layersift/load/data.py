"""Which columns of a data source hold what, and the kind of task that follows."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from layersift.config.data import Columns, TaskKind
from layersift.errors import DataError, listed
from layersift.load.images import image_bytes
from layersift.load.rows import Row, read_rows

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("query", "passage"),
)
TEXTS = ("text", "sentence", "content", "review", "document", "input", "question", "title")
LABELS = ("label", "labels", "target", "class", "category", "score", "similarity_score")
MESSAGES = ("messages", "conversations", "conversation", "chat")
PROMPTS = ("prompt", "instruction", "question", "query", "problem")
RESPONSES = ("response", "completion", "output", "answer", "solution", "chosen")
IMAGES = ("image", "img", "picture")
CHOICES = ("choices", "options")


@dataclass(frozen=True)
class Table:
    """The rows of a data source with the columns' roles settled."""

    rows: tuple[Row, ...]
    source: str
    kind: TaskKind
    columns: Columns
    without_image: int = 0  # rows left out because their image is missing
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
                digest.update(image_bytes(row[image], self.source))
        return digest.hexdigest()

    def described(self) -> str:
        """Kind of task and columns, for the screen."""
        used = self.columns.used()
        unused = [repr(name) for name in self.rows[0] if name not in used]
        notes = [f"; not used: {', '.join(unused)}"] * bool(unused)
        notes += [f"; {self.without_image} rows without an image left out"] * bool(self.without_image)
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


def _check_given(given: Columns, names: list[str], source: str) -> None:
    for part, name in asdict(given).items():
        if name is not None and name not in names:
            flag = f"--{part.replace('_', '-')}-column"
            raise DataError(f"{source} has no column {name!r} ({flag}); it has: {listed(map(repr, names), 160)}")
    twice = [name for name, count in Counter(given.used()).items() if count > 1]
    if twice:
        raise DataError(f"{source}: column {twice[0]!r} is given for two roles; each has a column of its own")


def _first(candidates: Iterable[str], names: list[str]) -> str | None:
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[c] for c in candidates if c in lowered), None)


def _guess_labelled(names: list[str], given: Columns) -> Columns | None:
    label = given.label or _first(LABELS, names)
    if label is None or given.prompt or given.response or given.messages:
        return None
    free = [n for n in names if n != label]
    if given.text:
        return Columns(text=given.text, text_pair=given.text_pair, label=label)
    for first, second in PAIRS:
        a, b = _first((first,), free), _first((second,), free)
        if a and b:
            return Columns(text=a, text_pair=given.text_pair or b, label=label)
    text = _first(TEXTS, free)
    if text and not given.image:
        return Columns(text=text, text_pair=given.text_pair, label=label)
    image = given.image or _first(IMAGES, free)
    return Columns(image=image, label=label) if image else None


def _guess_prompted(names: list[str], given: Columns) -> Columns | None:
    if given.text or given.label or given.messages:
        return None
    image = given.image or _first(IMAGES, names)
    choices = given.choices or _first(CHOICES, names)
    response = given.response or _first(RESPONSES, [n for n in names if n != given.prompt])
    prompt = given.prompt or _first(PROMPTS, [n for n in names if n != response])
    if not (prompt and response):
        return None
    about = {"instruction": "input"}.get(prompt.lower(), "hint" if choices else "")
    context = _first((about,), [n for n in names if n != response])
    return Columns(prompt=prompt, response=response, context=context, image=image, choices=choices)


def _guess_messages(names: list[str], given: Columns) -> Columns | None:
    if given.text or given.label or given.prompt or given.response:
        return None
    messages = given.messages or _first(MESSAGES, names)
    return Columns(messages=messages) if messages else None


def _guess_text(names: list[str], given: Columns) -> Columns | None:
    if given.label or given.prompt or given.response or given.messages:
        return None
    text = given.text or _first(TEXTS, names)
    return Columns(text=text, text_pair=given.text_pair) if text else None


def find_columns(names: list[str], given: Columns, source: str, kind: str | None = None) -> Columns:
    """The roles of the columns, from what was ``given`` and the ecosystem's usual names.

    Raises:
        DataError: a given column is missing, none fits, or two readings are possible; the message lists them.
    """
    _check_given(given, names, source)
    readings = {
        "labelled": _guess_labelled(names, given),
        "prompted": _guess_prompted(names, given),
        "messages": _guess_messages(names, given),
        "text": _guess_text(names, given),
    }
    wanted = {
        "classification": ["labelled"],
        "regression": ["labelled"],
        "instruction": ["prompted", "messages"],
        "text": ["text"],
    }.get(kind or "", list(readings))
    possible = {name: found for name in wanted if (found := readings[name]) is not None}
    if len(possible) > 1:
        possible.pop("text", None)  # text alone is what is left when nothing says more
    if len(possible) > 1:
        ways = "; ".join(f"{name}: {columns.described()}" for name, columns in possible.items())
        raise DataError(f"{source} can be read in {len(possible)} ways: {ways}. Say which with the --*-column flags.")
    if not possible:
        what = f"a {kind} task" if kind else "any task"
        raise DataError(
            f"{source}: no columns for {what} among {listed(names, 160)}; name them with --text-column, "
            "--label-column, --prompt-column, --response-column, --messages-column or --image-column"
        )
    return next(iter(possible.values()))


def _as_number(value: Any) -> Any:
    """A label of a .csv file is text; it counts as the number it spells. Other values stay what they are."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if value.strip().lstrip("+-").isdigit() else number
    return value


def _kind_of_labels(values: list[Any], source: str) -> TaskKind:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return "classification"
    if any(isinstance(v, float) and not v.is_integer() for v in numbers):
        return "regression"
    classes = len(set(numbers))
    if classes > 20 and classes > len(values) / 20:
        raise DataError(
            f"{source} can be read in 2 ways: as classification with {classes} classes, or as regression on whole "
            "numbers. Say which with --task."
        )
    return "classification"


def read_table(source: str, given: Columns | None = None, kind: TaskKind | None = None, split: str = "train") -> Table:
    """Read ``source`` and settle its columns and kind of task.

    Raises:
        DataError: the source, a column or a cell is missing, or more than one reading is possible.
    """
    return table_of(read_rows(source, split), source, given, kind)


def table_of(rows: list[Row], source: str, given: Columns | None = None, kind: TaskKind | None = None) -> Table:
    """A table from rows already in memory; see :func:`read_table`."""
    if not rows:
        raise DataError(f"{source}: no rows")
    if not isinstance(rows[0], dict):
        raise DataError(f"{source}: rows are to be dicts such as {{'text': ...}}, got {type(rows[0]).__name__}")
    columns = find_columns(list(rows[0]), given or Columns(), source, kind)
    numbered = list(enumerate(rows, start=1))
    if columns.image:  # ScienceQA, for one, has questions with and without
        numbered = [(number, row) for number, row in numbered if row.get(columns.image) is not None]
    without_image = len(rows) - len(numbered)
    if not numbered:
        raise DataError(f"{source}: column {columns.image!r} is empty in every row")
    for number, row in numbered:
        for name in columns.used():
            if row.get(name) is None and name != columns.context:
                raise DataError(f"{source}, row {number}: column {name!r} is empty")
    kept, numbers = tuple(row for _, row in numbered), tuple(number for number, _ in numbered)
    if columns.messages or columns.prompt:
        return Table(kept, os.fspath(source), "instruction", columns, without_image, numbers)
    if columns.label is None:
        return Table(kept, os.fspath(source), "text", columns, numbers=numbers)
    label = columns.label
    for number, row in numbered:
        if isinstance(row[label], list | dict):
            raise DataError(
                f"{source}, row {number}: column {label!r} holds {repr(row[label])[:60]}; a class or a number is needed"
            )
    labelled = tuple({**row, label: _as_number(row[label])} for row in kept)
    kind = kind or _kind_of_labels([row[label] for row in labelled], source)
    return Table(labelled, os.fspath(source), kind, columns, without_image, numbers)


def class_names(table: Table) -> tuple[str, ...]:
    """The classes of a classification table, in the order of their indices: numbers by value, texts by spelling.

    Raises:
        DataError: fewer than two classes.
    """
    label = table.columns.label
    counts = Counter(row[label] for row in table.rows if label)
    if len(counts) < 2:
        raise DataError(
            f"{table.source}: column {label!r} holds one class only ({next(iter(counts), None)!r}); two are needed"
        )
    ordered = sorted(counts, key=lambda v: (isinstance(v, str), v if isinstance(v, str) else "", v))
    return tuple(str(value) for value in ordered)


def require_rows(table: Table, fewest: int = 8) -> None:
    """Refuse data that is too small to say anything.

    Raises:
        DataError: fewer than ``fewest`` rows.
    """
    if len(table.rows) < fewest:
        raise DataError(f"{table.source}: {len(table.rows)} samples; at least {fewest} are needed")
