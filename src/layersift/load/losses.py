"""The loss of each sample: the negative log-likelihood of what is labelled."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from layersift.config.inputs import TaskKind
from layersift.load.examples import IGNORED


def token_losses(logits: torch.Tensor, labels: torch.Tensor, seq2seq: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss (B,), float32, and number of counted tokens (B,) of each row.

    A decoder's logits are of the token behind; those of an encoder-decoder, which is shown its labels shifted, are of
    the token itself. Row by row and on the counted tokens alone: float32 logits of a whole batch would set the peak
    memory.

    Args:
        logits: (B, T, V).
        labels: (B, T), -100 where none counts.
    """
    if not seq2seq:
        logits, labels = logits[:, :-1], labels[:, 1:]
    rows = []
    for row, wanted in zip(logits, labels, strict=True):
        counted = wanted != IGNORED
        rows.append(cross_entropy(row[counted].float(), wanted[counted], reduction="sum"))
    return torch.stack(rows), (labels != IGNORED).sum(dim=1)


def sample_losses(
    logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind, seq2seq: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each sample (B,) and the number of labelled things in it (B,).

    The negative log-likelihood of the class, of the response as a whole, or, half the squared error, of the number
    under a Gaussian of variance 1.
    """
    if kind in ("instruction", "text"):
        return token_losses(logits, labels, seq2seq)
    ones = torch.ones(len(labels), dtype=torch.long, device=labels.device)
    if kind == "regression":
        return (logits[:, 0].float() - labels.float()).square() / 2, ones
    return cross_entropy(logits.float(), labels, reduction="none"), ones
