"""Hold rows back, so that none on one side reads like a row on the other; and find rows read before."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layersift.data.chat.conversation import ROLES
from layersift.data.encode import Encoded, random_order
from layersift.data.examples import Example
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


DIGITS = (
    12  # of a digest, hexadecimal: among a million rows and another million, one in 300 pairs of files errs by a row
)
RUN = 3  # words
NEAR = 0.8  # of the runs of words that two rows have, those that both have, from which on they are nearly the same
Digests = tuple[str, ...]


def digests_of(table: Table, encoded: Encoded) -> list[Digests]:
    """What is read of each row that was encoded, as digests; two rows that share one read alike.

    One is of the row's texts, whatever their case, accents and white space, and its images. The other is of the tokens
    before the answer, as they are cut.
    """
    digests: list[Digests] = []
    for row, example in zip(encoded.rows, encoded.examples, strict=True):
        whole = digest_of_row(table, table.rows[row]).hex()[:DIGITS]
        if example.image is not None:
            digests.append((whole,))
            continue
        tokens = ",".join(map(str, _question_of(example)))
        digests.append((whole, hashlib.sha256(tokens.encode()).hexdigest()[:DIGITS]))
    return digests


def count_read(rows: Sequence[Digests], before: Collection[str]) -> int:
    """How many rows read like one whose digests are among those of before."""
    return sum(any(digest in before for digest in digests) for digests in rows)


def overlap_notice(count: int, rows: int) -> str:
    """What is said where test rows have been read in training; nothing where none has."""
    return f"{count} of {rows} rows read like rows trained on, so that the score is too good" if count else ""


def _question_of(example: Example) -> tuple[int, ...]:
    """The tokens before the last answer; of plain text, and of what is not answered, all."""
    start = len(example.input_ids)
    answers = (example.response or ())[:start]
    if True in answers:
        start = max(place for place, answer in enumerate(answers) if answer) + 1
        while start and answers[start - 1]:
            start -= 1
    return example.input_ids[:start] if start > 1 else example.input_ids


@dataclass(frozen=True)
class Overlap:
    """Of some rows those that other rows hold, too, each with the first such other row."""

    same: dict[int, int]  # whatever their case, accents and white space
    near: dict[int, int]  # of the others, those of nearly the same words; none where images are read


def find_overlap(table: Table, others: Table) -> Overlap:
    """The rows of a table that others hold as they are, or nearly.

    Two rows are nearly the same where at least 0.8 of the runs of three words that they have are runs of both. Exact:
    such rows share one of their rarest runs, and all that share one are compared (Bayardo, Ma and Srikant 2007).
    """
    first: dict[bytes, int] = {}
    for place, row in enumerate(others.rows):
        first.setdefault(digest_of_row(others, row), place)
    digests = [digest_of_row(table, row) for row in table.rows]
    same = {row: first[digest] for row, digest in enumerate(digests) if digest in first}
    if table.columns.image:
        return Overlap(same, {})
    mine, theirs = (_runs_by_row(t) for t in (table, others))
    counts = Counter(run for runs in (*mine, *theirs) for run in runs)
    holders: dict[str, list[int]] = {}
    for place, runs in enumerate(theirs):
        for run in _rarest(runs, counts):
            holders.setdefault(run, []).append(place)
    near = {}
    for number, runs in enumerate(mine):
        if number in same:
            continue
        candidates = sorted({place for run in _rarest(runs, counts) for place in holders.get(run, ())})
        like = next((place for place in candidates if _shared(runs, theirs[place]) >= NEAR), None)
        if like is not None:
            near[number] = like
    return Overlap(same, near)


def _runs_by_row(table: Table) -> list[frozenset[str]]:
    return [frozenset(_runs(words_of_row(table, row))) for row in table.rows]


def _runs(words: Sequence[str]) -> list[str]:
    """All runs of three words; of fewer, what there is."""
    return [" ".join(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))]


def _rarest(runs: frozenset[str], counts: Mapping[str, int]) -> list[str]:
    """So many of the rarest runs that whoever shares none of them cannot share enough of all."""
    kept = len(runs) - math.ceil(NEAR * len(runs)) + 1
    return sorted(runs, key=lambda run: (counts[run], run))[:kept]


def _shared(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)
