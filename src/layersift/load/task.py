"""The task at hand: which data, and how they are encoded. Selection, training and evaluation share it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layersift.config.inputs import DataSettings
from layersift.errors import DataError, wrap_library_errors
from layersift.load.architecture import is_encoder_decoder, longest_text
from layersift.load.data import Table, class_names, read_table, require_rows
from layersift.load.encode import Encoded, Encoder, encode_rows, random_order
from layersift.load.labels import head_names


def read_data(settings: DataSettings) -> Table:
    """The rows with their columns settled.

    Raises:
        DataError: the data cannot be read, hold fewer than 8 rows, or a single class; or see :func:`require_effect`.
    """
    table = read_table(settings.data, settings.columns(), settings.task, settings.split)
    require_rows(table)
    require_effect(settings, table)
    if table.kind == "classification":
        class_names(table)
    return table


def require_effect(settings: DataSettings, table: Table) -> None:
    """Refuse settings that the data have no use for.

    Raises:
        DataError: a chat template for something else than conversations, or a length in tokens for images alone.
    """
    if settings.chat_template is not None and table.kind != "instruction":
        what = f"chat-template {settings.chat_template}"
        raise DataError(f"{what} has no effect on {table.source}, a {table.kind} task; leave it away")
    if settings.max_length != DataSettings.max_length and table.columns.image and table.kind != "instruction":
        raise DataError(f"max-length has no effect on {table.source}, whose samples are images alone; leave it away")


def classes_of(table: Table, config: Any) -> tuple[str, ...]:
    """The classes of a classification, in the order that the head of a model of this configuration has; else none.

    Raises:
        DataError: a single class.
    """
    return class_names(table, head_names(config)) if table.kind == "classification" else ()


def encoder_of(
    settings: DataSettings, table: Table, classes: tuple[str, ...], tokenizer: Any, processor: Any, config: Any
) -> Encoder:
    """How these data become examples for a model of this configuration, with its tokenizer and processor.

    Args:
        classes: see :func:`classes_of`; the model was loaded for so many.

    Raises:
        DataError: the chat template cannot be read, or an encoder-decoder has no use for one.
    """
    if settings.chat_template is not None and is_encoder_decoder(config):
        raise DataError("chat-template has no effect on an encoder-decoder, which has prompts alone; leave it away")
    return Encoder(
        tokenizer,
        table.kind,
        classes,
        settings.max_length,
        read_template(settings.chat_template, tokenizer),
        processor,
        is_encoder_decoder(config),
        longest_text(config),
    )


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
    with wrap_library_errors(DataError, f"{path}: cannot read this chat template"):
        if not Path(path).is_file():
            raise FileNotFoundError("no such file")
        return Path(path).read_text(encoding="utf-8")


def encode_sample(table: Table, encoder: Encoder, at_most: int | None, seed: int) -> Encoded:
    """Examples of all rows in order, or of ``at_most`` rows drawn by the seed."""
    order: Sequence[int] = range(len(table.rows))
    if at_most is not None and at_most < len(table.rows):
        order = random_order(len(table.rows), seed)
    return encode_rows(table, encoder, order, at_most)
