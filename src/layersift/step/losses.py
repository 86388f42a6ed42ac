"""The losses of training, equal to the model's own to rounding.

:class:`ResponseLoss` is a decoder's, from logits of the tokens that count alone, a chunk of them at a time. A
vocabulary of 256,000 makes the logits of one batch larger than everything else in training. Most of them are never
used: those of the prompt and of padding. So the head reads the hidden states before the response's tokens only, in
chunks whose logits are not kept. Where the head is frozen, its gradient is taken at once. Where it is trained, the
logits are computed again for the backward pass.

:class:`LabelLoss` is that of classes, numbers and what an encoder-decoder writes, over any number of accumulated
batches. A model's own loss is the mean over the batch that it reads. The mean over several has to be divided by
what all of them hold together. Many models take that number and ignore it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from layersift.config.recipe import TaskKind
from layersift.config.train import TrainSettings
from layersift.data.examples import IGNORED, sample_losses, token_losses
from layersift.models.stacks import no_cache

CHUNK = 512  # tokens whose logits are held at once


class ResponseLoss:
    """The mean cross-entropy of the labelled tokens, equal to the model's own to rounding.

    Args:
        head_is_all: whether nothing happens to logits behind the head (no cap, no scale). None: the first batch tells.
    """

    def __init__(self, head_is_all: bool | None = None) -> None:
        self._head_is_all = head_is_all

    def items(self, labels: torch.Tensor) -> int:
        """The number of labelled tokens in a batch; nothing comes before the first one."""
        return int((labels[:, 1:] != IGNORED).sum())

    def __call__(self, model: Any, inputs: dict[str, Any], items: torch.Tensor | int | None = None) -> torch.Tensor:
        """Summed loss over ``items``, by default the number of labelled tokens in the batch.

        Args:
            inputs: what the model reads, with ``labels`` (B, T), -100 where no loss is taken.
        """
        labels = inputs["labels"]
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        rest = {name: value for name, value in inputs.items() if name != "labels"} | no_cache(inner)
        # The logits at token t are of token t + 1.
        counted = labels[:, 1:] != IGNORED
        wanted = labels[:, 1:][counted]
        count = items if items is not None else max(1, len(wanted))
        head = inner.get_output_embeddings()
        if self._head_is_all is not False:
            with _showing(head, counted, only_one=True) as shown:
                logits = model(**rest).logits
            if self._head_is_all is None and not (shown and not len(shown[0])):  # a batch without labels tells nothing
                self._head_is_all = bool(shown) and _equal(head, shown[0], logits)
            if self._head_is_all:
                return _chunked(head, shown[0], wanted.to(shown[0].device)) / count
        with _showing(head, counted, only_one=False) as shown:
            logits = model(**rest).logits
        if not shown:  # the head is called in some other way; then all logits are there
            logits = logits[:, :-1][counted]
        return cross_entropy(logits.flatten(0, -2).float(), wanted, reduction="sum") / count


def response_losses(model: Any, inputs: dict[str, Any], labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss (B,), float32, and number of labelled tokens (B,) of each row, for evaluation: nothing is kept.

    Args:
        inputs: what the model reads, without labels.
        labels: (B, T), -100 where no loss is taken.
    """
    counted = labels[:, 1:] != IGNORED
    with _showing(model.get_output_embeddings(), counted, only_one=False) as shown:
        logits = model(**inputs, **no_cache(model)).logits
    if not shown:
        return token_losses(logits, labels, seq2seq=False)
    wanted, counts = labels[:, 1:][counted], counted.sum(dim=1)
    sizes = counts.tolist()
    # Row by row: float32 logits of a whole batch would set the peak memory.
    losses = [
        cross_entropy(row.float(), tokens, reduction="sum")
        for row, tokens in zip(torch.split(logits[0], sizes), torch.split(wanted, sizes), strict=True)
    ]
    return torch.stack(losses), counts


@contextmanager
def _showing(head: nn.Module, counted: torch.Tensor, only_one: bool) -> Iterator[list[torch.Tensor]]:
    """While active, the head is shown the counted tokens' states (1, N, d) alone, or the first of them.

    Yields:
        a list that holds all of those states (N, d) once the head has been called.
    """
    shown: list[torch.Tensor] = []

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        states = args[0]
        if states.ndim != 3 or states.shape[1] != counted.shape[1] + 1:
            return None
        rows = states[:, :-1][counted]
        shown.append(rows)
        return ((rows[:1] if only_one else rows)[None], *args[1:])

    handle = head.register_forward_pre_hook(hook)
    try:
        yield shown
    finally:
        handle.remove()


def _equal(head: nn.Module, rows: torch.Tensor, logits: torch.Tensor) -> bool:
    if not len(rows):
        return False
    with torch.no_grad():
        return torch.equal(head(rows[:1][None]).float(), logits.detach().float())


def _chunked(head: nn.Module, rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of ``wanted`` (N,) under the head's logits of ``rows`` (N, d)."""
    if torch.is_grad_enabled() and rows.requires_grad and not any(p.requires_grad for p in head.parameters()):
        return _FrozenHeadLoss.apply(rows, wanted, head)  # type: ignore[no-any-return, no-untyped-call]
    total = rows.new_zeros((), dtype=torch.float32)
    for start in range(0, len(rows), CHUNK):
        part: Any = checkpoint(
            _summed, head, rows[start : start + CHUNK], wanted[start : start + CHUNK], use_reentrant=False
        )
        total = total + part
    return total


class _FrozenHeadLoss(torch.autograd.Function):
    """The same under a head that is not trained: its gradient is known as soon as its loss is.

    So each chunk's logits are computed once, and neither kept nor computed again.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, wanted: torch.Tensor, head: nn.Module) -> torch.Tensor:
        total = rows.new_zeros((), dtype=torch.float32)
        gradients: list[torch.Tensor] = []
        for part, tokens in zip(torch.split(rows, CHUNK), torch.split(wanted, CHUNK), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                loss = _summed(head, part, tokens)
            torch.autograd.backward(loss)  # nothing but this chunk has a gradient
            assert part.grad is not None
            gradients.append(part.grad)
            total = total + loss.detach()
        ctx.save_for_backward(torch.cat(gradients) if gradients else torch.zeros_like(rows))
        return total

    @staticmethod
    def backward(ctx: Any, *received: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * received[0].to(gradient.dtype), None, None


def _summed(head: nn.Module, rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return cross_entropy(head(rows).float(), wanted, reduction="sum")


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


def own_loss(
    adapted: Any, kind: TaskKind, settings: TrainSettings, *, seq2seq: bool
) -> ResponseLoss | LabelLoss | None:
    """The loss by the number of labelled things; None where the model adds a term of its own to it."""
    routed = bool(getattr(adapted.config, "output_router_logits", False))  # the router's auxiliary loss
    if settings.method == "adalora" or routed:
        return None
    return ResponseLoss() if kind in ("instruction", "text") and not seq2seq else LabelLoss(kind, seq2seq)
