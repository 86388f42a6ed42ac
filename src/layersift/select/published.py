"""`--compat paper`: the selection that the published scripts of arXiv 2602.05988 make, for comparison with the paper.

What they do otherwise than we would: biased CKA; the first samples instead of random ones; the last token, which in
decoders is the same newline in every text, so that R_0 is constant, its CKA 0 and block 0 always selected; [CLS] in
encoders, with the first layer of the ranking left out for the same reason; the last block after the final norm.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from layersift.data.encode import Encoder
from layersift.data.examples import Example
from layersift.data.table import Table
from layersift.errors import DataError, SelectionError
from layersift.measures import MEASURES
from layersift.models.stacks import BlockStack
from layersift.records.selection import LayerScores
from layersift.score.context import importances
from layersift.score.criteria.similarity import similarity_criterion

MAX_LENGTH = 512
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def published_examples(table: Table, encoder: Encoder, at_most: int) -> tuple[Example, ...]:
    """The first samples, tokenised as the scripts do it.

    Raises:
        DataError: the data are neither prompt and response, with or without an image, nor texts; or a text tokenises
            to nothing.
    """
    columns = table.columns
    if columns.messages:
        raise DataError("--compat paper knows prompts with responses, and texts; not chat messages")
    rows = range(min(at_most, len(table.rows)))
    if columns.image:
        return tuple(_question(table, index, encoder) for index in rows)
    encode = _instruction if columns.prompt else _texts
    return tuple(encode(table, index, encoder.tokenizer) for index in rows)


def _question(table: Table, index: int, encoder: Encoder) -> Example:
    """Image, question and answer, ending in the answer's last token: the scripts mask the end of text here, too."""
    example, _ = encoder.encode(table, index)
    if example is None or not example.response:
        raise DataError(f"{table.where(index)}: --compat paper needs an image with a question and an answer")
    length = len(example)
    while length and example.input_ids[length - 1] == encoder.tokenizer.eos_token_id:
        length -= 1
    return replace(
        example,
        input_ids=example.input_ids[:length],
        content=(True,) * length,
        response=None,
        types={name: values[:length] for name, values in example.types.items()},
    )


def _instruction(table: Table, index: int, tokenizer: Any) -> Example:
    row, columns = table.rows[index], table.columns
    prompt, response = row[columns.prompt or ""], row[columns.response or ""]
    text = PROMPT.format(instruction=prompt) + f"{response}\n{tokenizer.eos_token}"
    ids = tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    while ids and ids[-1] == tokenizer.eos_token_id:  # the scripts mask it, since they pad with it
        ids.pop()
    return _example(table, index, ids)


def _texts(table: Table, index: int, tokenizer: Any) -> Example:
    row, columns = table.rows[index], table.columns
    texts = [str(row[name]) for name in (columns.text, columns.text_pair) if name]
    return _example(table, index, tokenizer(*texts, truncation=True, max_length=MAX_LENGTH)["input_ids"])


def _example(table: Table, index: int, ids: list[int]) -> Example:
    if not ids:
        raise DataError(f"{table.where(index)}: the text tokenises to nothing")
    return Example(tuple(ids), content=(True,) * len(ids))


# Biased CKA, with importance 1 where a representation is constant, as 0 / 1e-12 comes out in the scripts.
PUBLISHED = replace(
    similarity_criterion(MEASURES["cka-biased"]),
    score=lambda context: importances(
        context.prepared(MEASURES["cka-biased"]), MEASURES["cka-biased"], constant_importance=1.0
    ),
)


def published_position(stack: BlockStack) -> str:
    """[CLS] in encoders, the last token in decoders."""
    return "first" if stack.tower == "encoder" else "last"


def published_choice(stack: BlockStack, scores: LayerScores, count: int) -> tuple[int, ...]:
    """The first ``count`` of the ranking; in encoders the first one is dropped and the next taken instead.

    Raises:
        SelectionError: a layer has no importance, so that the scripts' ranking does not exist.
    """
    if scores.undefined:
        layer, why = next(iter(scores.undefined.items()))
        raise SelectionError(f"--compat paper needs every layer's importance; layer {layer}: {why}")
    dropped = 1 if stack.tower == "encoder" else 0
    return tuple(sorted(scores.ranking[dropped : count + dropped]))
