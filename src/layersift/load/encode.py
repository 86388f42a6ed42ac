"""Turn the rows of a table into the token sequences that the model reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layersift.errors import DataError
from layersift.load.chat import Rendered, render
from layersift.load.data import Table, TaskKind
from layersift.load.examples import Example
from layersift.load.rows import Row

MAX_LENGTH = 512


@dataclass(frozen=True)
class Encoder:
    """How the rows of one task become :class:`Example` records; the same in selection, training and evaluation."""

    tokenizer: Any
    kind: TaskKind
    classes: tuple[str, ...] = ()  # of a classification task, in index order
    max_length: int = MAX_LENGTH
    chat_template: str | None = None  # instead of the tokenizer's own

    def limit(self) -> int:
        """Longest sequence in tokens: ``max_length``, or less where the model cannot read that much."""
        return min(self.max_length, int(self.tokenizer.model_max_length))

    def encode(self, table: Table, index: int) -> tuple[Example | None, bool]:
        """Row ``index`` as an example, and whether it was cut; None where the cut left nothing of the response.

        Raises:
            DataError: the row has no text, an unknown label, or messages that cannot be rendered.
        """
        where = f"{table.source}, row {index + 1}"
        if self.kind == "instruction":
            return self._rendered(render(table.rows[index], table.columns, self.tokenizer, self.chat_template, where))
        return self._text(table, table.rows[index], where)

    def _rendered(self, rendered: Rendered) -> tuple[Example | None, bool]:
        encoded = self.tokenizer(
            rendered.text, add_special_tokens=rendered.add_special_tokens, return_offsets_mapping=True
        )
        ids, spans = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        response = [any(a < end and start < b for start, end in rendered.responses) for a, b in spans]
        if rendered.add_eos and self.tokenizer.eos_token_id is not None and ids[-1] != self.tokenizer.eos_token_id:
            ids.append(self.tokenizer.eos_token_id)
            spans.append((0, 0))
            response.append(True)
        special = special_ids(self.tokenizer)
        content = [i not in special and bool(rendered.text[a:b].strip()) for i, (a, b) in zip(ids, spans, strict=True)]
        limit = self.limit()
        example = Example(tuple(ids[:limit]), tuple(content[:limit]), tuple(response[:limit]))
        return (example if any(response[:limit]) else None), len(ids) > limit

    def _text(self, table: Table, row: Row, where: str) -> tuple[Example, bool]:
        columns = table.columns
        texts = [str(row[name]) for name in (columns.text, columns.text_pair) if name]
        encoded = self.tokenizer(*texts, return_offsets_mapping=True, return_special_tokens_mask=True)
        cut = len(encoded["input_ids"]) > self.limit()
        if cut:
            encoded = self.tokenizer(
                *texts,
                truncation=True,
                max_length=self.limit(),
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
            )
        special = encoded["special_tokens_mask"]
        if all(special):
            raise DataError(f"{where}: the text {texts[0][:40]!r} tokenises to nothing")
        content = [
            not is_special and bool(texts[which or 0][a:b].strip())
            for is_special, (a, b), which in zip(
                special, encoded["offset_mapping"], encoded.sequence_ids(0), strict=True
            )
        ]
        types = encoded.get("token_type_ids")
        example = Example(
            input_ids=tuple(encoded["input_ids"]),
            content=tuple(content),
            response=tuple([False] + [True] * (len(content) - 1)) if self.kind == "text" else None,
            token_type_ids=tuple(types) if types is not None else None,
            label=self._label(row[columns.label], where, str(columns.label)) if columns.label else None,
        )
        return example, cut

    def _label(self, value: Any, where: str, column: str) -> int | float | None:
        if self.kind == "text":
            return None
        if self.kind == "regression":
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise DataError(f"{where}: column {column!r} holds {value!r}; regression needs a number")
            return float(value)
        if str(value) not in self.classes:
            raise DataError(
                f"{where}: label {value!r} in column {column!r} is not among the {len(self.classes)} classes that "
                f"the model was trained on: {', '.join(self.classes[:20])}"
            )
        return self.classes.index(str(value))


def special_ids(tokenizer: Any) -> set[int]:
    """Tokens that mark structure rather than carry text: the named special ones and those a chat template adds."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


@dataclass(frozen=True)
class Encoded:
    """Examples with the row each came from, and what the length limit did."""

    examples: tuple[Example, ...]
    rows: tuple[int, ...]
    truncated: int = 0
    left_out: int = 0  # rows whose prompt alone fills the limit

    def notice(self, limit: int) -> str | None:
        """One sentence on what was cut, or None where nothing was."""
        parts = []
        if self.truncated:
            parts.append(f"{self.truncated} of {len(self.examples) + self.left_out} samples cut to {limit} tokens")
        if self.left_out:
            parts.append(f"{self.left_out} left out, their prompt alone being longer")
        return "; ".join(parts) or None


def encode_rows(table: Table, encoder: Encoder, order: Iterable[int], at_most: int | None = None) -> Encoded:
    """Encode rows in the given order until ``at_most`` examples are there.

    Raises:
        DataError: a row cannot be encoded, or none is left.
    """
    examples: list[Example] = []
    rows: list[int] = []
    truncated = left_out = 0
    for index in order:
        if at_most is not None and len(examples) >= at_most:
            break
        example, cut = encoder.encode(table, index)
        truncated += cut
        if example is None:
            left_out += 1
            continue
        examples.append(example)
        rows.append(index)
    if not examples:
        raise DataError(f"{table.source}: no sample leaves room for a response within {encoder.limit()} tokens")
    return Encoded(tuple(examples), tuple(rows), truncated, left_out)


def random_order(count: int, seed: int) -> Sequence[int]:
    """A permutation of ``range(count)`` that depends on both numbers alone."""
    return [int(i) for i in np.random.default_rng(seed).permutation(count)]
