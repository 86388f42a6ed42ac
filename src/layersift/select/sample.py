"""What is shown to the model: a random sample of the task, or batches that the caller has made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from layersift.config.data import TaskKind
from layersift.config.select import FEWEST_SAMPLES, SelectSettings
from layersift.load.blocks import BlockStack
from layersift.load.data import Table, require_rows
from layersift.load.encode import Encoder, encode_rows, random_order
from layersift.load.examples import Example
from layersift.load.loader import examples_of_loader
from layersift.records.data import DataRecord, describe
from layersift.select.published import published_examples

# Towers that read what is to be written.
TOWERS_WITH_RESPONSE = ("language", "decoder")


def default_position(kind: TaskKind, stack: BlockStack) -> str:
    """The mean over the tokens that bear the loss where the stack reads them, else over all tokens.

    That leaves out the first token of a text, on which decoders put activations so large that nothing else counts.
    docs/method.md gives the evidence: the choice of position changes a selection more than anything else, and the
    mean over the tokens that the task is about did best on short runs, without the artefact of a constant token.
    """
    reads_response = kind in ("instruction", "text")
    found = ["response-mean" if reads_response and p.tower in TOWERS_WITH_RESPONSE else "mean" for p in stack.parts]
    return "+".join(dict.fromkeys(found))


@dataclass(frozen=True)
class Sample:
    """What is shown to the model, and what the selection file says of it."""

    examples: tuple[Example, ...]
    kind: TaskKind
    data: DataRecord
    notice: str | None = None  # what the length limit did


def sample_table(table: Table, encoder: Encoder, settings: SelectSettings) -> Sample:
    """A random sample of the table without replacement (a duplicate would bias the estimator), drawn by the seed.

    Raises:
        DataError: the table is too small, or a row cannot be encoded.
    """
    require_rows(table, FEWEST_SAMPLES)
    if settings.compat == "paper":
        examples = published_examples(table, encoder, settings.max_samples)
        return Sample(examples, table.kind, describe(table))
    order = random_order(len(table.rows), settings.seed)
    encoded = encode_rows(table, encoder, order, settings.max_samples)
    return Sample(encoded.examples, table.kind, describe(table), encoded.notice(encoder.limit()))


def sample_of_batches(batches: Iterable[Any], tokenizer: Any, max_samples: int) -> Sample:
    """The samples of batches, in the order in which they come."""
    examples = examples_of_loader(batches, tokenizer, max_samples)
    digest = hashlib.sha256(repr([e.input_ids for e in examples]).encode()).hexdigest()
    kind: TaskKind = "text" if examples[0].response is None else "instruction"
    data = DataRecord(type(batches).__name__, len(examples), f"sha256:{digest}", kind)
    return Sample(examples, kind, data)
