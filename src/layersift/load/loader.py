"""Read samples out of ready batches, as a DataLoader yields them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from layersift.errors import DataError
from layersift.load.encode_chat import special_ids
from layersift.load.examples import IGNORED, Example


def examples_of_loader(batches: Iterable[Any], tokenizer: Any, at_most: int) -> tuple[Example, ...]:
    """Up to ``at_most`` samples, in order, with the padding taken off, whichever side it is on.

    Raises:
        DataError: the batches hold no ``input_ids``, or a sample has no tokens.
    """
    special = special_ids(tokenizer) if tokenizer is not None else set()
    examples: list[Example] = []
    for batch in batches:
        if not hasattr(batch, "keys") or "input_ids" not in batch:
            got = f"one of {', '.join(map(str, batch))}" if hasattr(batch, "keys") else type(batch).__name__
            raise DataError(f"expected batches that are dicts with input_ids, as a collator gives them; got {got}")
        ids = torch.as_tensor(batch["input_ids"])
        if ids.ndim != 2 or ids.is_floating_point():
            raise DataError(
                f"expected input_ids of whole numbers, shape (batch, tokens); got {ids.dtype} {tuple(ids.shape)}"
            )
        for name in ("attention_mask", "token_type_ids", "labels"):
            shape = torch.as_tensor(batch[name]).shape if name in batch else ids.shape
            if shape != ids.shape and (name != "labels" or shape[:1] != ids.shape[:1] or len(shape) == 2):
                raise DataError(f"{name} of shape {tuple(shape)} beside input_ids of shape {tuple(ids.shape)}")
        mask = (
            torch.as_tensor(batch["attention_mask"]).bool() if "attention_mask" in batch else torch.ones_like(ids) > 0
        )
        labels = torch.as_tensor(batch["labels"]) if "labels" in batch else None
        types = torch.as_tensor(batch["token_type_ids"]) if "token_type_ids" in batch else None
        for row in range(len(ids)):
            if len(examples) == at_most:
                return tuple(examples)
            kept = mask[row]
            if not bool(kept.any()):
                raise DataError(f"sample {len(examples) + 1} has no tokens")
            tokens = ids[row][kept].tolist()
            response = (labels[row][kept] != IGNORED).tolist() if labels is not None and labels.ndim == 2 else None
            examples.append(
                Example(
                    input_ids=tuple(tokens),
                    content=tuple(t not in special for t in tokens),
                    response=tuple(response) if response else None,
                    types={"token_type_ids": tuple(types[row][kept].tolist())} if types is not None else {},
                )
            )
    if not examples:
        raise DataError("the data loader yields no batches")
    return tuple(examples)
