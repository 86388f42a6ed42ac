"""Rows that a model has read before: the same in what it reads of them, or nearly the same by their words."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from layersift.data.encode import Encoded
from layersift.data.examples import Example
from layersift.data.split import digest_of_row, words_of_row
from layersift.data.table import Table

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
        tokens = ",".join(map(str, _asked(example)))
        digests.append((whole, hashlib.sha256(tokens.encode()).hexdigest()[:DIGITS]))
    return digests


def count_read(rows: Sequence[Digests], before: Collection[str]) -> int:
    """How many rows read like one whose digests are among those of before."""
    return sum(any(digest in before for digest in digests) for digests in rows)


def overlap_notice(count: int, rows: int) -> str:
    """What is said where test rows have been read in training; nothing where none has."""
    return f"{count} of {rows} rows read like rows trained on, so that the score is too good" if count else ""


def _asked(example: Example) -> tuple[int, ...]:
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
