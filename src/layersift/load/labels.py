"""Labels of a classification or regression: what they are, and which a model's head knows."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from layersift.config.inputs import TaskKind
from layersift.errors import DataError

GENERIC = re.compile(r"LABEL_\d+")  # what transformers calls a class that nobody has named
MOST_CLASSES = 20  # of whole numbers, where nobody says that they are classes
UNLABELLED = -1  # as SNLI and its kin mark a row that has no label


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
        if isinstance(value, str) and not value.strip():
            raise DataError(f"{where(row)}: column {column!r} is empty; leave out rows without a label")
        number = _number(value)
        if number is not None and not abs(number) < sys.float_info.max:  # NaN is not, either
            raise DataError(
                f"{where(row)}: column {column!r} holds {repr(value)[:60]}, no label; leave out rows without one"
            )
    numbers = [_number(value) for value in values]
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
    return int(number) if value.strip().lstrip("+-").isdigit() else number


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
        key = str(value).strip() if number is None else str(float(number))
        other = met.setdefault(key, row)
        if other != row and _told_apart(values[other], value):
            raise DataError(
                f"{where(other)} and {where(row)}: column {column!r} holds {values[other]!r} and {value!r}; write one "
                "class in one way, and two in ways that differ in more than their spelling"
            )
    if all(number is not None for number in numbers):
        whole = {number for number in numbers if number is not None}
        if UNLABELLED in whole and 0 in whole:
            row = numbers.index(UNLABELLED)
            raise DataError(
                f"{where(row)}: column {column!r} holds -1 beside 0, the mark of rows without a label; leave them out "
                f"({numbers.count(UNLABELLED)} rows), or name the classes in words"
            )
        if all(not isinstance(v, str) or str(n) == v.strip() for v, n in zip(values, numbers, strict=True)):
            return list(numbers)
    return list(values)  # "01" is the name of a class, and stays so


def _told_apart(a: Any, b: Any) -> bool:
    """Whether two values of one meaning are written in two ways; numbers that are equal are not."""
    return isinstance(a, str) or isinstance(b, str) or isinstance(a, bool) != isinstance(b, bool)


def kind_of_labels(values: Sequence[Any], source: str) -> TaskKind:
    """Classification or regression, by what the labels are.

    Raises:
        DataError: both are possible.
    """
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
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
