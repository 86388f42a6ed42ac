"""The task at hand: which data, and how they are encoded. Selection, training and evaluation share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersift.errors import DataError, LayersiftError, unknown_name
from layersift.load.data import TASK_KINDS, Columns, Table, TaskKind, class_names, read_table, require_rows
from layersift.load.encode import MAX_LENGTH, Encoded, Encoder, encode_rows, random_order


@dataclass(frozen=True)
class DataSettings:
    """Where the samples are and what their columns mean; columns that are None are found by their names."""

    data: str
    task: TaskKind | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    prompt_column: str | None = None
    response_column: str | None = None
    messages_column: str | None = None
    image_column: str | None = None
    choices_column: str | None = None
    split: str = "train"
    max_length: int = MAX_LENGTH
    chat_template: str | None = None  # path of a Jinja file

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASK_KINDS:
            raise unknown_name("task", self.task, TASK_KINDS)
        if self.max_length < 1:
            raise LayersiftError(f"max-length {self.max_length} is out of range; at least 1 token is needed")

    def columns(self) -> Columns:
        """The columns that were given."""
        roles = ("text", "text_pair", "label", "prompt", "response", "messages", "image", "choices")
        return Columns(**{role: getattr(self, f"{role}_column") for role in roles})

    def read(self) -> Table:
        """The rows with their columns settled.

        Raises:
            DataError: the data cannot be read, hold fewer than 8 rows, or a single class.
        """
        table = read_table(self.data, self.columns(), self.task, self.split)
        require_rows(table)
        if table.kind == "classification":
            class_names(table)
        return table

    def encoder(self, table: Table, tokenizer: Any, processor: Any = None, seq2seq: bool = False) -> Encoder:
        """How these data become examples for a model that reads with this tokenizer and processor.

        Raises:
            DataError: the chat template cannot be read, or a single class.
        """
        classes = class_names(table) if table.kind == "classification" else ()
        return Encoder(tokenizer, table.kind, classes, self.max_length, self.read_template(), processor, seq2seq)

    def read_template(self) -> str | None:
        """The chat template's text, where one was given."""
        if self.chat_template is None:
            return None
        try:
            return Path(self.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.chat_template}: cannot read this chat template ({error})") from None


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
