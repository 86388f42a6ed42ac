"""Turn the rows of a table into the token sequences that the model reads."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from layersift.config.data import Columns, DataSettings, TaskKind
from layersift.errors import DataError, foreign
from layersift.load.chat import Rendered, image_prompt, instruction, messages_of, prompt_text, render
from layersift.load.data import Table
from layersift.load.examples import Example, Tensors
from layersift.load.images import open_image
from layersift.load.long_texts import beginning
from layersift.load.rows import Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoder:
    """How the rows of one task become :class:`Example` records; the same in selection, training and evaluation."""

    tokenizer: Any  # None where samples are images alone
    kind: TaskKind
    classes: tuple[str, ...] = ()  # of a classification task, in index order
    max_length: int = DataSettings.max_length
    chat_template: str | None = None  # instead of the tokenizer's own
    processor: Any = None  # of images, or of images and text; None where samples are text alone
    seq2seq: bool = False  # the model reads the prompt with an encoder and writes the response with a decoder

    def limit(self) -> int:
        """Longest sequence in tokens: ``max_length``, or less where the model cannot read that much."""
        if self.tokenizer is None:
            return self.max_length
        return min(self.max_length, int(self.tokenizer.model_max_length))

    def encode(self, table: Table, index: int) -> tuple[Example | None, bool]:
        """Row ``index`` as an example, and whether it was cut; None where the cut left nothing of the response.

        Raises:
            DataError: the row has no text, an unknown label, or messages that cannot be rendered.
        """
        where, row = table.where(index), table.rows[index]
        with foreign(DataError, f"{where}: the tokenizer or the image processor cannot read it"):
            if self.kind == "instruction":
                if table.columns.image:
                    return self._question(table, row, where)
                if self.seq2seq:
                    return self._source_and_target(row, table.columns, where)
                return self._rendered(render(row, table.columns, self.tokenizer, self.chat_template, where))
            if table.columns.image:
                return self._image(table, row, where), False
            return self._text(table, row, where)

    def prompt(self, table: Table, index: int) -> Example:
        """What the model reads of row ``index`` before it answers.

        Raises:
            DataError: the row is no conversation.
        """
        where, row = table.where(index), table.rows[index]
        *before, _ = messages_of(row, table.columns, where)
        if table.columns.image:
            return self._read_with_image(before, row[table.columns.image], table.source)
        if self.seq2seq:
            ids = self.tokenizer(instruction(before))["input_ids"][: self.limit()]
        else:
            text, special = prompt_text(before, self.tokenizer, self.chat_template)
            ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return Example(tuple(ids), (True,) * len(ids))

    def _image(self, table: Table, row: Row, where: str) -> Example:
        columns = table.columns
        read = partial(_image_inputs, self.processor, row[columns.image or ""], table.source)
        pixels = read()["pixel_values"]
        return Example(
            input_ids=(),
            content=(),
            label=self._label(row[columns.label], where, str(columns.label)) if columns.label else None,
            image=read,
            patches=max(1, pixels.shape[-1] * pixels.shape[-2] // 16**2),  # 16 pixels a side, as most models have it
        )

    def _question(self, table: Table, row: Row, where: str) -> tuple[Example | None, bool]:
        """Prompt with the image's tokens, answer, end of text. Only the answer is cut: never the image."""
        *before, last = messages_of(row, table.columns, where)
        prompt = self._read_with_image(before, row[table.columns.image or ""], table.source)
        answer = self.tokenizer(last["content"], add_special_tokens=False)["input_ids"]
        if self.tokenizer.eos_token_id is not None:
            answer = [*answer, self.tokenizer.eos_token_id]
        image_token = getattr(self.processor, "image_token_id", None)
        room = self.limit() - sum(i != image_token for i in prompt.input_ids)
        kept = tuple(answer[: max(0, room)])
        special = special_ids(self.tokenizer)
        example = replace(
            prompt,
            input_ids=prompt.input_ids + kept,
            content=prompt.content + tuple(i not in special for i in kept),
            response=(False,) * len(prompt) + (True,) * len(kept),
            types={name: values + (0,) * len(kept) for name, values in prompt.types.items()},
        )
        return (example if kept else None), len(kept) < len(answer)

    def _read_with_image(self, messages: list[dict[str, str]], image: Any, source: str) -> Example:
        text = image_prompt(messages, self.processor, self.chat_template)
        bos = getattr(self.tokenizer, "bos_token", None)
        settings = {"text": [text], "add_special_tokens": not (bos and text.startswith(bos))}
        encoded = self.processor(**settings, images=[open_image(image, source)], return_tensors="pt")
        ids = tuple(encoded["input_ids"][0].tolist())
        by_token = {n for n, v in encoded.items() if v.shape == (1, len(ids))}
        special = special_ids(self.tokenizer)
        return Example(
            input_ids=ids,
            content=tuple(i not in special for i in ids),
            types={n: tuple(encoded[n][0].tolist()) for n in sorted(by_token - {"input_ids", "attention_mask"})},
            image=partial(_image_inputs, self.processor, image, source, by_token, settings),
        )

    def _source_and_target(self, row: Row, columns: Columns, where: str) -> tuple[Example | None, bool]:
        """For an encoder-decoder: the instruction as it is to the encoder, the response to the decoder."""
        *before, last = messages_of(row, columns, where)
        limit, special = self.limit(), special_ids(self.tokenizer)
        read = self.tokenizer(beginning(instruction(before), self.tokenizer, limit))["input_ids"]
        written = self.tokenizer(text_target=beginning(last["content"], self.tokenizer, limit))["input_ids"]
        ids = tuple(read[:limit])
        example = Example(ids, tuple(i not in special for i in ids), target=tuple(written[:limit]))
        return example, max(len(read), len(written)) > limit

    def _rendered(self, rendered: Rendered) -> tuple[Example | None, bool]:
        encoded = self.tokenizer(
            beginning(rendered.text, self.tokenizer, self.limit()),
            add_special_tokens=rendered.add_special_tokens,
            return_offsets_mapping=True,
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
        texts = [_text_of(row[name], name, where) for name in (columns.text, columns.text_pair) if name]
        texts = [beginning(text, self.tokenizer, self.limit()) for text in texts]
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
        # Where there is no room but for special tokens, the tokenizer cuts nothing at all.
        if cut and (all(special) or len(special) > self.limit()):
            raise DataError(f"{where}: max-length {self.limit()} leaves no room for a token of the text")
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
            types={"token_type_ids": tuple(types)} if types is not None else {},
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


def _text_of(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r} holds {repr(value)[:60]}; a text is needed")
    return value


def _image_inputs(
    processor: Any, image: Any, source: str, by_token: Set[str] = frozenset(), settings: dict[str, Any] | None = None
) -> Tensors:
    """The inputs that come of the image, each with the sample's own first dimension; ``by_token`` are not of them."""
    encoded = processor(**(settings or {}), images=[open_image(image, source)], return_tensors="pt")
    return {name: value for name, value in encoded.items() if name not in by_token}


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
    encoded = Encoded(tuple(examples), tuple(rows), truncated, left_out)
    if notice := encoded.notice(encoder.limit()):
        log.info("%s: %s", table.source, notice)
    return encoded


def random_order(count: int, seed: int) -> Sequence[int]:
    """A permutation of ``range(count)`` that depends on both numbers alone."""
    return [int(i) for i in np.random.default_rng(seed).permutation(count)]
