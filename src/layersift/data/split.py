"""Hold a part of the rows back, so that no row on one side reads like a row on the other."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from layersift.data.chat.conversation import ROLES
from layersift.data.encode import random_order
from layersift.data.images import image_bytes
from layersift.data.table import Table
from layersift.errors import DataError

ANSWERS = ("label", "response")  # roles of what the model is to give; all others are read


def split_off(table: Table, fraction: float, seed: int, *, by_class: bool = False) -> tuple[Table, Table]:
    """Hold about ``fraction`` of the rows back; both parts keep the rows' order and numbers.

    Rows that read the same are on one side, whatever their labels or answers: texts count as the same whatever their
    case, accents and white space. So a few rows less may be held back than asked for.

    Args:
        by_class: of a classification, hold that fraction of every class back. A class of a single distinct row is
            trained on.

    Returns:
        The rest, and what is held back.

    Raises:
        DataError: one of both parts would be empty.
    """
    groups = _groups(table)
    count = len(table.rows)
    classes = _classes(table, groups) if by_class and table.kind == "classification" else [""] * len(groups)
    left = _quotas(_rows_by_class(classes, groups), round(fraction * count))
    distinct = Counter(classes)
    group_of = {row: place for place, rows in enumerate(groups) for row in rows}
    held_back: set[int] = set()
    for row in random_order(count, seed):
        place = group_of[row]
        name, rows = classes[place], groups[place]
        lone = len(set(classes)) > 1 and distinct[name] == 1
        if row in held_back or lone or len(rows) > left[name]:
            continue
        held_back.update(rows)
        left[name] -= len(rows)
        distinct[name] -= 1
    if not 0 < len(held_back) < count:
        raise DataError(
            f"{table.source}: {fraction:g} of {count} rows, {len(groups)} of which read differently, cannot be held "
            "back; give more rows or another fraction"
        )
    return table.take([i for i in range(count) if i not in held_back]), table.take(sorted(held_back))


def count_read_alike(table: Table) -> int:
    """How many rows read like an earlier one."""
    return len(table.rows) - len(_groups(table))


def _groups(table: Table) -> list[list[int]]:
    """Indices of the rows that read the same, in the order of the first of each."""
    groups: dict[bytes, list[int]] = {}
    for index, row in enumerate(table.rows):
        groups.setdefault(digest_of_row(table, row), []).append(index)
    return list(groups.values())


def digest_of_row(table: Table, row: Mapping[str, Any]) -> bytes:
    """SHA-256 of what the model reads of a row: its images, and its texts whatever their case, accents and spaces."""
    digest = hashlib.sha256()
    for role, value in _read(table, row):
        digest.update(f"\0{role}\0".encode())
        if role == "image":
            for each in value if isinstance(value, list) else [value]:
                digest.update(image_bytes(each, table.source))
        else:
            digest.update(_plain(value).encode())
    return digest.digest()


def words_of_row(table: Table, row: Mapping[str, Any]) -> list[str]:
    """What the model reads of a row but its images, as words without case and accents."""
    return [word for role, value in _read(table, row) if role != "image" for word in _plain(value).split()]


def _read(table: Table, row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the model reads of a row, with the roles of its columns; of a conversation without its last answer."""
    given = [(role, row.get(name)) for role, name in table.columns.by_role().items() if role not in ANSWERS]
    return [(role, _asked(value) if role == "messages" else value) for role, value in given if value is not None]


def _asked(turns: Any) -> Any:
    """Chat messages without the answers that they end in."""
    turns = list(turns) if isinstance(turns, list) else turns
    while isinstance(turns, list) and turns and isinstance(turns[-1], dict):
        role = str(turns[-1].get("role", turns[-1].get("from")))
        if ROLES.get(role, role) != "assistant":
            break
        turns.pop()
    return turns


def _plain(value: Any) -> str:
    """A text without accents, capitals and runs of white space, of which tokenizers may make nothing."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False, sort_keys=True)
    letters = unicodedata.normalize("NFKD", text)
    return " ".join("".join(c for c in letters if not unicodedata.combining(c)).casefold().split())


def _classes(table: Table, groups: Sequence[Sequence[int]]) -> list[str]:
    """The most common class of each group."""
    label = str(table.columns.label)
    return [Counter(str(table.rows[row][label]) for row in rows).most_common(1)[0][0] for rows in groups]


def _rows_by_class(classes: Sequence[str], groups: Sequence[Sequence[int]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, rows in zip(classes, groups, strict=True):
        counts[name] += len(rows)
    return counts


def _quotas(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """``total`` rows, divided among classes in proportion to their rows, by largest remainders."""
    whole = sum(counts.values())
    exact = {name: total * count / whole for name, count in counts.items()}
    quotas = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: quotas[name] - exact[name])
    for name in by_remainder[: total - sum(quotas.values())]:
        quotas[name] += 1
    return quotas
