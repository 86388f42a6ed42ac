"""Cells as sources hold them, as plain values: the one place that knows the types of Arrow, NumPy and `datasets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

from layersift.errors import DataError

Row = dict[str, Any]
PLAIN = (str, int, float, bool, bytes, type(None))


class ClassName(str):
    """The name of a class, and the place that it has among the names of its column."""

    place: int

    def __new__(cls, name: str, place: int) -> ClassName:
        """The name as a text."""
        made = super().__new__(cls, name)
        made.place = place
        return made

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return ClassName, (str(self), self.place)


def plain(value: Any) -> Any:
    """A cell with Python's own numbers, lists and dicts in it, at every depth; what has no such form stays as it is."""
    if type(value) in PLAIN:
        return value
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # of NumPy: a number, or an array of some
        return value.tolist()
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def plain_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows with :func:`plain` cells; those that have them already are not copied."""
    return [
        row
        if not isinstance(row, dict) or all(type(value) in PLAIN for value in row.values())
        else {name: plain(value) for name, value in row.items()}
        for row in rows
    ]


def _number(value: Decimal) -> int | float:
    """A decimal of no places is a whole number."""
    whole = value.is_finite() and value.as_tuple().exponent == 0
    return int(value) if whole else float(value)


def named_classes(rows: list[Row], names: Mapping[str, Sequence[str]]) -> list[Row]:
    """Rows whose class indices are the names that the source gives them; -1, the mark of none, is an empty cell."""

    def named(value: Any, of: Sequence[str]) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        return ClassName(of[value], value) if 0 <= value < len(of) else None if value == -1 else value

    columns = {column: of for column, of in names.items() if of}
    return [{**row, **{c: named(row[c], of) for c, of in columns.items() if c in row}} for row in rows]


def require_whole(text: str, where: str) -> None:
    """Refuse half of an emoji: JSON can spell one, but it is no character.

    Raises:
        DataError: there is one.
    """
    with suppress(UnicodeEncodeError):
        text.encode()
        return
    half = next(i for i, letter in enumerate(text) if "\ud800" <= letter <= "\udfff")
    raise DataError(
        f"{where}: character {half + 1} is half of a surrogate pair ({text[half]!a}), no text; mend the row"
    )
