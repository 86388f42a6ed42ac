"""The task at hand: which data, and how they are encoded. Selection, training and evaluation share it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layersift.config.data import DataSettings
from layersift.errors import DataError, foreign
from layersift.load.data import Table, class_names, read_table, require_rows
from layersift.load.encode import Encoded, Encoder, encode_rows, random_order


def read_data(settings: DataSettings) -> Table:
    """The rows with their columns settled.

    Raises:
        DataError: the data cannot be read, hold fewer than 8 rows, or a single class.
    """
    table = read_table(settings.data, settings.columns(), settings.task, settings.split)
    require_rows(table)
    if table.kind == "classification":
        class_names(table)
    return table


def encoder_of(
    settings: DataSettings, table: Table, tokenizer: Any, processor: Any = None, seq2seq: bool = False
) -> Encoder:
    """How these data become examples for a model that reads with this tokenizer and processor.

    Raises:
        DataError: the chat template cannot be read, or a single class.
    """
    classes = class_names(table) if table.kind == "classification" else ()
    template = read_template(settings.chat_template)
    return Encoder(tokenizer, table.kind, classes, settings.max_length, template, processor, seq2seq)


def read_template(path: str | None) -> str | None:
    """A chat template's text, where one was given.

    Raises:
        DataError: it cannot be read.
    """
    if path is None:
        return None
    with foreign(DataError, f"{path}: cannot read this chat template"):
        if not Path(path).is_file():
            raise FileNotFoundError("no such file")
        return Path(path).read_text(encoding="utf-8")


def split_off(table: Table, share: float, seed: int) -> tuple[Table, Table]:
    """A random ``1 - share`` and ``share`` of the rows, each in their original order."""
    order = random_order(len(table.rows), seed)
    held_back = round(share * len(table.rows))
    return table.take(sorted(order[held_back:])), table.take(sorted(order[:held_back]))


def encode_sample(table: Table, encoder: Encoder, at_most: int | None, seed: int) -> Encoded:
    """Examples of all rows in order, or of ``at_most`` rows drawn by the seed."""
    order: Sequence[int] = range(len(table.rows))
    if at_most is not None and at_most < len(table.rows):
        order = random_order(len(table.rows), seed)
    return encode_rows(table, encoder, order, at_most)
