"""Read samples out of ready batches, as a DataLoader yields them, or out of rows that are tokenised already."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from layersift.config.recipe import TaskKind
from layersift.data.chat.encode_chat import special_ids
from layersift.data.examples import IGNORED, Example
from layersift.errors import DataError
from layersift.models.stacks import find_stacks, is_encoder_decoder

# Labels of tasks that are not known here, by the model's class; leaving them out still shows what it reads.
OTHER_HEADS = {"ForTokenClassification": "token classification", "ForQuestionAnswering": "question answering"}
OTHER_LABELS = {"start_positions": "question answering", "end_positions": "question answering"}
READ = ("input_ids", "attention_mask", "token_type_ids", "labels")
IMPLIED = ("decoder_input_ids", "decoder_attention_mask", "return_dict")  # by the labels, or no input


@dataclass(frozen=True)
class Batched:
    """The samples of ready batches, and the kind of task that their labels are of."""

    examples: tuple[Example, ...]
    kind: TaskKind
    again: int = 0  # samples of which the model reads what it has read of another: left out


def examples_of_loader(
    batches: Iterable[Any], tokenizer: Any, at_most: int, model: Any = None, distinct: bool = False
) -> Batched:
    """Up to ``at_most`` samples, in order, with the padding taken off, whichever side it is on.

    What labels are is told by the model: an encoder-decoder's are what it is to write, a classification head's are
    classes or numbers (B,), and others' are tokens (B, T), -100 where no loss is taken. Without labels samples are
    text, which a decoder is taken to predict.

    Args:
        distinct: leave out samples that come again, up to ``at_most`` of them in a row: the batches may be endless.

    Raises:
        DataError: the batches hold no ``input_ids``, or inputs that would be left out; a sample has no tokens; or the
            labels are of another task.
    """
    special = special_ids(tokenizer) if tokenizer is not None else set()
    predicts = _predicts(model)
    examples: list[Example] = []
    seen: set[object] = set()
    again = in_a_row = 0
    kind: TaskKind = "text"
    for batch, kind, row in _rows_of(batches, model):
        if not bool(batch["attention_mask"][row].any()):
            raise DataError(f"sample {len(examples) + again + 1} has no tokens")
        example = _example(batch, row, kind, special, is_encoder_decoder(model), predicts)
        if distinct and (example.input_ids, example.target) in seen:
            again, in_a_row = again + 1, in_a_row + 1
        else:
            seen.add((example.input_ids, example.target))
            examples.append(example)
            in_a_row = 0
        if len(examples) == at_most or in_a_row > at_most:
            break
    if not examples:
        raise DataError("the data loader yields no batches")
    return Batched(tuple(examples), kind, again)


def _rows_of(batches: Iterable[Any], model: Any) -> Iterator[tuple[dict[str, torch.Tensor], TaskKind, int]]:
    """Every row of every batch, as the batch, the kind of its labels and the row's place in it."""
    takes = set() if model is None else set(inspect.signature(type(model).forward).parameters)
    kinds: set[TaskKind] = set()
    for given in batches:
        batch = _checked(given, takes)
        kind = _kind_of_labels(batch.get("labels"), batch["input_ids"], model)
        kinds.add(kind)
        if len(kinds) > 1:
            raise DataError(f"batches of several kinds: {', '.join(sorted(kinds))}")
        for row in range(len(batch["input_ids"])):
            yield batch, kind, row


def _checked(given: Any, takes: set[str]) -> dict[str, torch.Tensor]:
    """A batch of tensors (B, ...); a single tokenised row is a batch of one."""
    if not isinstance(given, Mapping) and not hasattr(given, "keys"):
        raise DataError(
            f"expected batches that are dicts with input_ids, as a collator gives them; got {type(given).__name__}"
        )
    if "input_ids" not in given:
        got = f"one of {', '.join(map(str, given))}"
        raise DataError(f"expected batches that are dicts with input_ids, as a collator gives them; got {got}")
    for name, task in OTHER_LABELS.items():
        if name in given:
            raise DataError(f"{name}: {task} is not supported; leave {name} out to select by what the model reads")
    batch = {name: torch.as_tensor(given[name]) for name in READ if given.get(name) is not None}
    if batch["input_ids"].ndim == 1:
        batch = {name: value[None] for name, value in batch.items()}
    ids = batch["input_ids"]
    if ids.ndim != 2 or ids.is_floating_point():
        raise DataError(
            f"expected input_ids of whole numbers, shape (batch, tokens); got {ids.dtype} {tuple(ids.shape)}"
        )
    batch.setdefault("attention_mask", torch.ones_like(ids))
    for name in ("attention_mask", "token_type_ids"):
        if name in batch and batch[name].shape != ids.shape:
            raise DataError(f"{name} of shape {tuple(batch[name].shape)} beside input_ids of shape {tuple(ids.shape)}")
    _require_nothing_unread(given, batch["attention_mask"], takes)
    return batch


def _require_nothing_unread(given: Mapping[str, Any], mask: torch.Tensor, takes: set[str]) -> None:
    """Refuse what the model would read of a batch and we would not: images, or several texts in one row."""
    unread = [
        name for name, value in given.items() if name in takes and name not in (*READ, *IMPLIED) and value is not None
    ]
    if "position_ids" in unread and _counts_from_zero(torch.as_tensor(given["position_ids"]), mask):
        unread.remove("position_ids")
    if "position_ids" in unread:
        raise DataError("position_ids that do not count a text from 0: several texts in a row? Give batches unpacked")
    if unread:
        raise DataError(
            f"{', '.join(unread)}: of ready batches {', '.join(READ)} are read; give rows of text or images in their "
            "place, or leave it out to select without"
        )


def _counts_from_zero(positions: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether positions (B, T) are what the mask (B, T) says, or plain places."""
    positions = positions if positions.ndim == 2 else positions[None]
    read = mask.bool()
    if positions.shape[-1] != mask.shape[-1]:
        return False
    plain = torch.arange(mask.shape[-1]).expand_as(mask)
    counted = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return any(bool((positions.expand_as(mask)[read] == expected[read]).all()) for expected in (plain, counted))


def _kind_of_labels(labels: torch.Tensor | None, ids: torch.Tensor, model: Any) -> TaskKind:
    name = type(model).__name__
    if labels is None:
        return "text"
    if other := next((task for ending, task in OTHER_HEADS.items() if name.endswith(ending)), None):
        raise DataError(f"{other} is not supported; leave the labels out to select by what the model reads")
    wrong = DataError(
        f"labels of shape {tuple(labels.shape)} beside input_ids of shape {tuple(ids.shape)}, no labels of {name}: "
    )
    if labels.shape[:1] != ids.shape[:1]:
        raise wrong
    if labels.ndim == 1:
        return "regression" if labels.is_floating_point() else "classification"
    if name.endswith("Classification"):
        raise DataError(f"{wrong}classes (B,) are needed; several labels a sample (multi-label) are not supported")
    if labels.ndim != 2 or labels.is_floating_point() or (labels.shape != ids.shape and not is_encoder_decoder(model)):
        raise DataError(f"{wrong}tokens of the same shape are needed, -100 where no loss is taken")
    return "instruction"


def _predicts(model: Any) -> bool:
    """Whether a model reads text as what it is to write, each token from those before it."""
    if model is None or is_encoder_decoder(model):
        return False
    return any(stack.tower in ("decoder", "language") for stack in find_stacks(model))


def _example(
    batch: dict[str, torch.Tensor], row: int, kind: TaskKind, special: set[int], seq2seq: bool, predicts: bool
) -> Example:
    kept = batch["attention_mask"][row].bool()
    tokens = batch["input_ids"][row][kept].tolist()
    response: tuple[bool, ...] | None = None
    target: tuple[int, ...] | None = None
    label: int | float | None = None
    if kind == "text" and predicts:  # as rows of text: the first token is not predicted
        response = (False, *[True] * (len(tokens) - 1))
    elif kind == "instruction":
        labels = batch["labels"][row]
        if seq2seq:
            target = tuple(labels[labels != IGNORED].tolist())
        else:
            response = tuple((labels[kept] != IGNORED).tolist())
    elif kind in ("classification", "regression"):
        label = batch["labels"][row].item()
    types = batch.get("token_type_ids")
    return Example(
        input_ids=tuple(tokens),
        content=tuple(t not in special for t in tokens),
        response=response,
        types={"token_type_ids": tuple(types[row][kept].tolist())} if types is not None else {},
        label=label,
        target=target,
    )
