"""Conversations and long texts as the token sequences that a model reads."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

from layersift.data.chat.conversation import Conversation
from layersift.data.chat.template import Template, instruction, render, render_with_images
from layersift.data.examples import Example, Tensors
from layersift.data.images import open_image, require_whole
from layersift.errors import DataError
from layersift.progress import warn_once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """What turns text and images into tokens, and how many of them the model reads."""

    tokenizer: Any
    limit: int
    chat_template: str | None = None  # instead of the tokenizer's own
    processor: Any = None  # of images and text


def as_one_text(reader: Reader, conversation: Conversation, where: str) -> tuple[Example | None, bool]:
    """The conversation as its template writes it, with the loss on its trained turns; None where the cut left none.

    A token counts if any of its characters does: where a tokenizer joins the last letter of a prompt with the first of
    an answer, the answer has it.
    """
    rendered = render(
        conversation, Template.of(reader.chat_template, reader.tokenizer, bool(conversation.tools)), where
    )
    if not reader.tokenizer.is_fast:
        raise DataError(
            f"{where}: responses are found by offsets, which only a fast tokenizer reports; this one is slow"
        )
    require_whole(rendered.text, where)
    _tell_control_tokens(reader.tokenizer, conversation, where)
    encoded = reader.tokenizer(
        cut_long_text(rendered.text, reader.tokenizer, reader.limit),
        add_special_tokens=rendered.add_special_tokens,
        return_offsets_mapping=True,
    )
    ids, spans = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    response = [any(a < end and start < b for start, end in rendered.responses) for a, b in spans]
    if rendered.add_eos and reader.tokenizer.eos_token_id is not None and ids[-1] != reader.tokenizer.eos_token_id:
        ids.append(reader.tokenizer.eos_token_id)
        spans.append((0, 0))
        response.append(True)
    special = special_ids(reader.tokenizer)
    content = [i not in special and bool(rendered.text[a:b].strip()) for i, (a, b) in zip(ids, spans, strict=True)]
    limit = reader.limit
    example = Example(tuple(ids[:limit]), tuple(content[:limit]), tuple(response[:limit]))
    return (example if any(response[:limit]) else None), len(ids) > limit


def _tell_control_tokens(tokenizer: Any, conversation: Conversation, where: str) -> None:
    """Say where a text holds what the tokenizer reads as a control token, such as one that closes a turn."""
    controls = _control_tokens(tokenizer)
    for message in conversation.messages:
        text = message["content"] if isinstance(message["content"], str) else ""
        if controls is not None and (found := controls.search(text)):
            said = f"texts of {message['role']!r} hold {found[0]!r}, which is read as that token and not as text"
            warn_once(log, f"{where.rpartition(', row')[0] or where}: {said}")


@lru_cache(maxsize=4)
def _control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None


def source_and_target(reader: Reader, conversation: Conversation, where: str) -> tuple[Example | None, bool]:
    """For an encoder-decoder: the instruction as it is to the encoder, the response to the decoder."""
    *before, last = conversation.messages
    if any(message["role"] not in ("user", "system") for message in before):
        raise DataError(f"{where}: a conversation of several turns; an encoder-decoder takes one prompt and one answer")
    if not isinstance(last["content"], str) or len(last) > 2 or last["role"] != "assistant" or conversation.tools:
        raise DataError(f"{where}: an encoder-decoder is trained on a prompt and an answer in text")
    limit, special = reader.limit, special_ids(reader.tokenizer)
    read = reader.tokenizer(cut_long_text(instruction(before, where), reader.tokenizer, limit))["input_ids"]
    written = reader.tokenizer(text_target=cut_long_text(last["content"], reader.tokenizer, limit))["input_ids"]
    ids = tuple(read[:limit])
    example = Example(ids, tuple(i not in special for i in ids), target=tuple(written[:limit]))
    return example, max(len(read), len(written)) > limit


def with_images(reader: Reader, conversation: Conversation, source: str, where: str) -> tuple[Example | None, bool]:
    """Prompt with the images' tokens, and from the first answer on text alone. Only that is cut: never an image."""
    rendered = render_with_images(conversation, reader.processor, reader.chat_template, where)
    begins = rendered.responses[0][0]
    prompt = prompt_with_images(reader, rendered.text[:begins], conversation, source)
    ids: list[int] = []
    trained: list[bool] = []
    edges = sorted({begins, len(rendered.text), *(edge for span in rendered.responses for edge in span)})
    for start, end in pairwise(edges):  # a token never belongs to two turns
        piece = reader.tokenizer(rendered.text[start:end], add_special_tokens=False)["input_ids"]
        ids += piece
        trained += [any(a <= start < b for a, b in rendered.responses)] * len(piece)
    if rendered.add_eos and reader.tokenizer.eos_token_id is not None:
        ids, trained = [*ids, reader.tokenizer.eos_token_id], [*trained, True]
    image_token = getattr(reader.processor, "image_token_id", None)
    room = max(0, reader.limit - sum(i != image_token for i in prompt.input_ids))
    special = special_ids(reader.tokenizer)
    example = replace(
        prompt,
        input_ids=prompt.input_ids + tuple(ids[:room]),
        content=prompt.content + tuple(i not in special for i in ids[:room]),
        response=(False,) * len(prompt) + tuple(trained[:room]),
        types={name: values + (0,) * len(ids[:room]) for name, values in prompt.types.items()},
    )
    return (example if any(trained[:room]) else None), room < len(ids)


def prompt_with_images(reader: Reader, text: str, conversation: Conversation, source: str) -> Example:
    bos = getattr(reader.tokenizer, "bos_token", None)
    settings = {"text": [text], "add_special_tokens": not (bos and text.startswith(bos))}
    pictures = [open_image(image, source) for image in conversation.images]
    encoded = reader.processor(**settings, images=pictures, return_tensors="pt")
    ids = tuple(encoded["input_ids"][0].tolist())
    by_token = {n for n, v in encoded.items() if v.shape == (1, len(ids))}
    special = special_ids(reader.tokenizer)
    return Example(
        input_ids=ids,
        content=tuple(i not in special for i in ids),
        types={n: tuple(encoded[n][0].tolist()) for n in sorted(by_token - {"input_ids", "attention_mask"})},
        image=partial(image_inputs, reader.processor, conversation.images, source, by_token, settings),
    )


def image_inputs(
    processor: Any,
    images: Sequence[Any],
    source: str,
    by_token: Set[str] = frozenset(),
    settings: dict[str, Any] | None = None,
) -> Tensors:
    """The inputs that come of the images, each with the sample's own first dimension; ``by_token`` are not of them."""
    encoded = processor(**(settings or {}), images=[open_image(i, source) for i in images], return_tensors="pt")
    return {name: value for name, value in encoded.items() if name not in by_token}


def special_ids(tokenizer: Any) -> set[int]:
    """Tokens that mark structure rather than carry text: the named special ones and those a chat template adds."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


CHARACTERS = 32  # a token, at first; ordinary text has four
SPARE = 8  # tokens at the cut that may be others than in the whole text, and special ones
SPACE = re.compile(r"\s")


def cut_long_text(text: str, tokenizer: Any, limit: int) -> str:
    """As much of a text as its first ``limit`` tokens, and some more, are made of: all of it where it is short.

    Cut at white space, where words and so tokens end, and only where what is left has more tokens than are read.
    """
    length = CHARACTERS * limit
    while length < len(text):
        space = SPACE.search(text, length)
        if space is None:
            return text
        part = text[: space.start()]
        if len(tokenizer(part, add_special_tokens=False)["input_ids"]) > limit + SPARE:
            return part
        length *= 4
    return text


def cut_long_text_left(text: str, tokenizer: Any, limit: int) -> str:
    """The same from the end, for tokenizers that cut on the left: as much as the last ``limit`` tokens are made of."""
    length = CHARACTERS * limit
    while length < len(text):
        *before, _ = text[: len(text) - length].rsplit(maxsplit=1) or [""]
        if not before:
            return text
        part = text[len(before[0]) :]
        if len(tokenizer(part, add_special_tokens=False)["input_ids"]) > limit + SPARE:
            return part
        length *= 4
    return text
