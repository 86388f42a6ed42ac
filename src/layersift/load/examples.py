"""One tokenised sample of a task, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from layersift.load.data import TaskKind

IGNORED = -100  # label of a token on which no loss is taken, as PyTorch and transformers have it


@dataclass(frozen=True)
class Example:
    """One sample as the model reads it, unpadded; every tuple has one entry a token."""

    input_ids: tuple[int, ...]
    content: tuple[bool, ...]  # False for special tokens and for tokens that are only white space
    response: tuple[bool, ...] | None = None  # True where the loss is taken; None where the task has no response
    token_type_ids: tuple[int, ...] | None = None
    label: int | float | None = None  # class index, or the number to predict

    def __len__(self) -> int:
        return len(self.input_ids)


def batches_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of samples in batches of equal token budget, longest first, so that padding stays small.

    A batch's longest sample times its size is at most ``budget``, unless a single sample exceeds it. Longest
    first: where memory is going to run out, it does so in the first batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded model inputs (B, T): input_ids, attention_mask and, where the task has them, token_type_ids.

    Padding stands on the right whatever side the tokenizer prefers: positions then count from each text's own
    start in every architecture, so that a sample's hidden states do not depend on its neighbours in the batch.
    """
    width = max(len(e) for e in examples)
    ids = torch.full((len(examples), width), pad_id)
    mask = torch.zeros((len(examples), width), dtype=torch.long)
    types = torch.zeros_like(mask)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example.input_ids)
        mask[row, : len(example)] = 1
        if example.token_type_ids is not None:
            types[row, : len(example)] = torch.tensor(example.token_type_ids)
    batch = {"input_ids": ids, "attention_mask": mask}
    if examples[0].token_type_ids is not None:
        batch["token_type_ids"] = types
    return batch


def labelled_batch(examples: Sequence[Example], pad_id: int, kind: TaskKind) -> dict[str, torch.Tensor]:
    """Model inputs with labels: the class, the number, or the tokens of the response (-100 elsewhere)."""
    batch = collate(examples, pad_id)
    if kind == "classification":
        batch["labels"] = torch.tensor([e.label for e in examples])
    elif kind == "regression":
        batch["labels"] = torch.tensor([e.label for e in examples], dtype=torch.float32)
    else:
        batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
        for row, example in enumerate(examples):
            response = torch.tensor(example.response)
            batch["labels"][row, : len(example)][response] = batch["input_ids"][row, : len(example)][response]
    return batch
