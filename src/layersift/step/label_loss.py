"""The loss of what is labelled, over any number of batches: classes, numbers, and what an encoder-decoder writes.

A model's own loss is the mean over the batch that it sees, so that of several accumulated batches it has to be divided
by what all of them hold together. Many models take that number and ignore it; here it is kept.
"""

from __future__ import annotations

from typing import Any

import torch

from layersift.config.inputs import TaskKind
from layersift.data.examples import IGNORED, sample_losses


class LabelLoss:
    """The mean of the labelled things' losses: cross-entropy of classes and tokens, squared error of numbers."""

    def __init__(self, kind: TaskKind, seq2seq: bool) -> None:
        self._kind, self._seq2seq = kind, seq2seq

    def items(self, labels: torch.Tensor) -> int:
        """The number of labelled things in a batch."""
        return int((labels != IGNORED).sum()) if self._seq2seq else len(labels)

    def __call__(self, model: Any, inputs: dict[str, Any], items: torch.Tensor | int | None = None) -> torch.Tensor:
        """Summed loss over ``items``, by default the number of labelled things in the batch.

        Args:
            inputs: what the model reads, with ``labels``: (B,), or (B, T) with -100 where no loss is taken.
        """
        labels = inputs["labels"]
        # The decoder of an encoder-decoder reads its labels.
        given = inputs if self._seq2seq else {name: value for name, value in inputs.items() if name != "labels"}
        losses, counts = sample_losses(model(**given).logits, labels, self._kind, self._seq2seq)
        total = losses.sum() * (2 if self._kind == "regression" else 1)  # half the squared error is the likelihood's
        return total / (items if items is not None else counts.sum().clamp_min(1))
