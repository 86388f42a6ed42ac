"""Rows become examples: what a model reads of them, as its tokenizer writes it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from layersift.config.recipe import DataSettings, TaskKind
from layersift.data.chat.conversation import conversation_of
from layersift.data.chat.encode_chat import (
    Reader,
    as_one_text,
    cut_long_text,
    cut_long_text_left,
    image_inputs,
    prompt_with_images,
    source_and_target,
    special_ids,
    with_images,
)
from layersift.data.chat.template import Template, image_prompt, instruction, prompt_as_trained, prompt_text
from layersift.data.examples import Example
from layersift.data.images import ClassName, Row, require_whole
from layersift.data.table import Table
from layersift.errors import DataError, listed, wrap_library_errors
from layersift.progress import warn_once

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
    places: int | None = None  # tokens that the model has positions for

    @property
    def languages(self) -> tuple[str, str] | None:
        """Those of prompts and responses, where the model translates between many."""
        target = getattr(self.tokenizer, "tgt_lang", None) if self.seq2seq else None
        return (self.tokenizer.src_lang, target) if target else None

    def limit(self) -> int:
        """Longest sequence in tokens: ``max_length``, or less where the model cannot read that much."""
        if self.tokenizer is None:
            return self.max_length
        return min(self.max_length, int(self.tokenizer.model_max_length), self.places or self.max_length)

    def encode(self, table: Table, index: int) -> tuple[Example | None, bool]:
        """Row ``index`` as an example, and whether it was cut; None where the cut left nothing of the response.

        Raises:
            DataError: the row has no text, an unknown label, or messages that cannot be rendered.
        """
        where, row = table.where(index), table.rows[index]
        with wrap_library_errors(
            DataError,
            f"{where}: the tokenizer or the image processor cannot read it",
            "leave the row out, or see the files of the model's tokenizer",
        ):
            if self.kind == "instruction":
                return self._conversation(table, row, where)
            if table.columns.image:
                return self._image(table, row, where), False
            if self.kind == "text" and self.seq2seq:
                raise DataError("an encoder-decoder is trained on prompts and responses; this is plain text")
            return self._text(table, row, where)

    def prompt(self, table: Table, index: int) -> Example:
        """What the model reads of row ``index`` before it gives its last answer.

        Raises:
            DataError: the row is no conversation.
        """
        where, row = table.where(index), table.rows[index]
        conversation = conversation_of(row, table.columns, where)
        before = conversation.messages[: conversation.last_trained()]
        with wrap_library_errors(
            DataError,
            f"{where}: the chat template, tokenizer or processor cannot write it",
            "another template can be given by --chat-template",
        ):
            if conversation.images:
                text = image_prompt(before, conversation, self.processor, self.chat_template)
                return prompt_with_images(self._reader(), text, conversation, table.source)
            if self.seq2seq:
                whole, limit = self.tokenizer(instruction(before, where))["input_ids"], self.limit()
                if len(whole) > limit:
                    cut = f"prompts of more than {limit} tokens are cut there, as they are in training"
                    warn_once(log, f"{table.source}: {cut}")
                ids = whole[:limit]
            else:
                template = Template.of(self.chat_template, self.tokenizer, bool(conversation.tools))
                if template is None:
                    text, special = prompt_text(before, self.tokenizer, None, conversation)
                else:
                    text, special = prompt_as_trained(conversation, template, where), False
                ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return Example(tuple(ids), (True,) * len(ids))

    def answer(self, table: Table, index: int) -> str:
        """The last answer of row ``index``, as the data give it.

        Raises:
            DataError: the row is no conversation, or its last answer is no text.
        """
        where = table.where(index)
        conversation = conversation_of(table.rows[index], table.columns, where)
        content = conversation.messages[conversation.last_trained()]["content"]
        if not isinstance(content, str):
            raise DataError(f"{where}: the last answer is no text, and nothing can be compared with it")
        return content

    def _reader(self) -> Reader:
        return Reader(self.tokenizer, self.limit(), self.chat_template, self.processor)

    def _conversation(self, table: Table, row: Row, where: str) -> tuple[Example | None, bool]:
        conversation = conversation_of(row, table.columns, where)
        if conversation.images:
            if self.processor is None or not hasattr(self.processor, "tokenizer"):
                raise DataError(f"{where}: a message has an image, but this model reads text alone")
            return with_images(self._reader(), conversation, table.source, where)
        if self.seq2seq:
            return source_and_target(self._reader(), conversation, where)
        return as_one_text(self._reader(), conversation, where)

    def _image(self, table: Table, row: Row, where: str) -> Example:
        columns = table.columns
        given = row[columns.image or ""]
        if isinstance(given, list):
            if len(given) != 1:
                raise DataError(f"{where}: column {columns.image!r} holds {len(given)} images; one is needed")
            given = given[0]
        read = partial(image_inputs, self.processor, [given], table.source)
        pixels = read()["pixel_values"]
        return Example(
            input_ids=(),
            content=(),
            label=self._label(row[columns.label], where, str(columns.label)) if columns.label else None,
            image=read,
            patches=max(1, pixels.shape[-1] * pixels.shape[-2] // 16**2),  # 16 pixels a side, as most models have it
        )

    def _text(self, table: Table, row: Row, where: str) -> tuple[Example, bool]:
        columns = table.columns
        texts = [_text_of(row[name], name, where) for name in (columns.text, columns.text_pair) if name]
        shorten = cut_long_text_left if getattr(self.tokenizer, "truncation_side", "right") == "left" else cut_long_text
        texts = [shorten(text, self.tokenizer, self.limit()) for text in texts]
        options = {"return_offsets_mapping": self.tokenizer.is_fast, "return_special_tokens_mask": True}
        encoded = self.tokenizer(*texts, **options)
        cut = len(encoded["input_ids"]) > self.limit()
        if cut:
            encoded = self.tokenizer(*texts, truncation=True, max_length=self.limit(), **options)
        special = encoded["special_tokens_mask"]
        # Where there is no room but for special tokens, the tokenizer cuts nothing at all.
        if cut and (all(special) or len(special) > self.limit()):
            raise DataError(f"{where}: max-length {self.limit()} leaves no room for a token of the text")
        if all(special):
            raise DataError(f"{where}: the text {texts[0][:40]!r} tokenises to nothing")
        content = [not s and bool(said.strip()) for s, said in zip(special, self._said(encoded, texts), strict=True)]
        types = encoded.get("token_type_ids")
        example = Example(
            input_ids=tuple(encoded["input_ids"]),
            content=tuple(content),
            response=tuple([False] + [True] * (len(content) - 1)) if self.kind == "text" else None,
            types={"token_type_ids": tuple(types)} if types is not None else {},
            label=self._label(row[columns.label], where, str(columns.label)) if columns.label else None,
        )
        return example, cut

    def _said(self, encoded: Any, texts: Sequence[str]) -> list[str]:
        """What each token says: its part of the text, or where a slow tokenizer knows none, what it stands for."""
        if not self.tokenizer.is_fast:
            return [self.tokenizer.decode([token]) for token in encoded["input_ids"]]
        places = zip(encoded["offset_mapping"], encoded.sequence_ids(0), strict=True)
        return [texts[which or 0][a:b] for (a, b), which in places]

    def _label(self, value: Any, where: str, column: str) -> int | float | None:
        if self.kind == "text":
            return None
        if self.kind == "regression":
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise DataError(f"{where}: column {column!r} holds {value!r}; regression needs a number")
            return float(value)
        name = self._class_of(value)
        if name is None:
            raise DataError(
                f"{where}: label {value!r} in column {column!r} is not among the {len(self.classes)} classes that "
                f"the model was trained on: {', '.join(self.classes[:20])}"
            )
        return self.classes.index(name)

    def _class_of(self, value: Any) -> str | None:
        """The class that a label names: by its name, else by the place that its source gives it, or as a number."""
        if str(value) in self.classes:
            return str(value)
        if isinstance(value, ClassName) and str(value.place) in self.classes:  # a run of a version that read no names
            return str(value.place)
        if isinstance(value, int | float) and not isinstance(value, bool):  # 1.0 was a class of its own before
            return next((name for name in (f"{float(value)}", f"{int(value)}") if name in self.classes), None)
        return None


def _text_of(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r} holds {repr(value)[:60]}; a text is needed")
    require_whole(value, where)
    return value


@dataclass(frozen=True)
class Encoded:
    """Examples with the row each came from, and what the length limit did."""

    examples: tuple[Example, ...]
    rows: tuple[int, ...]
    truncated: int = 0
    left_out: int = 0  # rows whose prompt alone fills the limit
    duplicates: int = 0  # rows of which the model reads what it has read of another
    limit: int = 0  # tokens

    @property
    def notice(self) -> str:
        """What was cut or left out, or nothing."""
        parts = []
        if self.truncated:
            parts.append(f"{self.truncated} of {len(self.examples) + self.left_out} samples cut to {self.limit} tokens")
        if self.left_out:
            parts.append(f"{self.left_out} left out, their prompt alone being longer")
        return "; ".join(parts)


def encode_rows(
    table: Table, encoder: Encoder, order: Iterable[int], at_most: int | None = None, distinct: bool = False
) -> Encoded:
    """Encode rows in the given order until ``at_most`` examples are there.

    Args:
        distinct: leave out rows of which the model reads the tokens of another.

    Raises:
        DataError: a row cannot be encoded, or none is left.
    """
    examples: list[Example] = []
    rows: list[int] = []
    truncated = left_out = duplicates = 0
    seen: set[object] = set()
    for index in order:
        if at_most is not None and len(examples) >= at_most:
            break
        example, cut = encoder.encode(table, index)
        truncated += cut
        if example is None:
            left_out += 1
            continue
        if distinct and example.image is None:
            if (read := (example.input_ids, example.target)) in seen:
                duplicates += 1
                continue
            seen.add(read)
        examples.append(example)
        rows.append(index)
    _require_known(examples, encoder, table.source)
    if not examples:
        raise DataError(f"{table.source}: no sample leaves room for a response within {encoder.limit()} tokens")
    encoded = Encoded(tuple(examples), tuple(rows), truncated, left_out, duplicates, encoder.limit())
    if encoded.notice:
        log.info("%s: %s", table.source, encoded.notice)
    return encoded


TOLD_UNKNOWN = 0.1  # of the tokens: from here on it is said


def _require_known(examples: Sequence[Example], encoder: Encoder, source: str) -> None:
    """Refuse text of which the tokenizer knows nothing, and tell where it lacks more than a tenth.

    Raises:
        DataError: all of it becomes the token that stands for what is not known.
    """
    unknown = getattr(encoder.tokenizer, "unk_token_id", None)
    if unknown is None or not any(unknown in e.input_ids for e in examples):
        return
    structure = special_ids(encoder.tokenizer) - {unknown}
    counts = Counter(i == unknown for e in examples for i in e.input_ids if i not in structure)
    if not counts[False]:
        raise DataError(
            f"{source}: the tokenizer knows nothing of the text, which becomes {encoder.tokenizer.unk_token}; "
            "are model and data of one language, and of one alphabet?"
        )
    if counts[True] > TOLD_UNKNOWN * counts.total():
        share = counts[True] / counts.total()
        log.warning("%s: the tokenizer does not know %.0f%% of the text", source, 100 * share)


def random_order(count: int, seed: int) -> Sequence[int]:
    """A permutation of ``range(count)`` that depends on both numbers alone."""
    return [int(i) for i in np.random.default_rng(seed).permutation(count)]


def read_template(path: str | None, tokenizer: Any = None) -> str | None:
    """A chat template's text, where a file was given; the name of one of the tokenizer's own is left as it is.

    Raises:
        DataError: it cannot be read.
    """
    if path is None:
        return None
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict) and path in own:
        return path
    with wrap_library_errors(DataError, f"{path}: cannot read this chat template", "a Jinja file in UTF-8 is needed"):
        if not Path(path).is_file():
            raise FileNotFoundError("no such file")
        text = Path(path).read_text(encoding="utf-8")
    if not text.strip():
        raise DataError(f"{path}: an empty chat template; a Jinja file is needed that writes the messages")
    return text


def set_languages(tokenizer: Any, source: str | None, target: str | None, translates: bool) -> None:
    """Tell a tokenizer of many languages which ones it reads and writes; one that names both needs not be told.

    Args:
        translates: whether prompts are read by an encoder and responses written by a decoder.

    Raises:
        DataError: a language is missing, not known, or of no use to this tokenizer.
    """
    given = {"source-language": source, "target-language": target}
    if not (translates and hasattr(tokenizer, "tgt_lang")):
        if name := next((name for name, language in given.items() if language is not None), None):
            raise DataError(f"{name} has no effect on this model and task; leave it away")
        return
    named = {"source-language": source or tokenizer.src_lang, "target-language": target or tokenizer.tgt_lang}
    codes = getattr(tokenizer, "lang_code_to_token", {}) or [t for t in tokenizer.all_special_tokens if "_" in t]
    for name, language in named.items():
        if language is None:
            raise DataError(
                f"this model translates between many languages; say with --{name} which one the rows have: "
                f"{listed(codes, 80)}"
            )
        if language_token(tokenizer, language) is None:
            raise DataError(f"{name} {language!r} is none that the tokenizer knows: {listed(codes, 80)}")
    if source is None:
        log.warning("prompts are read as %s, the tokenizer's own; --source-language names another", tokenizer.src_lang)
    tokenizer.src_lang, tokenizer.tgt_lang = named["source-language"], named["target-language"]


def language_token(tokenizer: Any, language: str | None) -> int | None:
    """The token of a language, which begins what is written in it; None of one that is not known."""
    codes = getattr(tokenizer, "lang_code_to_token", {})  # M2M100's, which has __de__ for de
    known = {str(token) for token in tokenizer.all_special_tokens} | {*getattr(tokenizer, "lang_code_to_id", {})}
    token = codes.get(language, language)
    return int(tokenizer.convert_tokens_to_ids(token)) if token in known or language in codes else None


def encode_sample(table: Table, encoder: Encoder, at_most: int | None, seed: int) -> Encoded:
    """Examples of all rows in order, or of ``at_most`` rows drawn by the seed."""
    order: Sequence[int] = range(len(table.rows))
    if at_most is not None and at_most < len(table.rows):
        order = random_order(len(table.rows), seed)
    return encode_rows(table, encoder, order, at_most)


OPEN, CLOSE = "«", "»"  # around tokens on which the loss is taken


def mark_trained(example: Example, encoder: Encoder) -> str:
    """The sample's tokens as text; of a classification with its class, of an encoder-decoder with what it writes."""
    tokenizer = encoder.tokenizer
    if not example.input_ids:
        text = f"an image, about {example.patches} patches"
    else:
        flags = example.response or (False,) * len(example.input_ids)
        runs = groupby(zip(example.input_ids, flags, strict=True), key=lambda pair: pair[1])
        text = "".join(_run(tokenizer, [token for token, _ in run], trained) for trained, run in runs)
    if example.target is not None:
        text += f"\nwrites {_run(tokenizer, list(example.target), True)}"
    if example.label is not None:
        named = encoder.classes[int(example.label)] if encoder.classes else example.label
        text += f"\nlabel {OPEN}{named}{CLOSE}"
    return text


def _run(tokenizer: Any, tokens: list[int], trained: bool) -> str:
    text = str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
    return f"{OPEN}{text}{CLOSE}" if trained else text
