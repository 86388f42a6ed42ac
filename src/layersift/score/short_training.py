"""Short trainings that some criteria look at: adapters on a model for a while, a few steps, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from layersift.errors import DataError, SelectionError
from layersift.load.examples import Example, collate, labelled_batch
from layersift.load.losses import sample_losses
from layersift.represent.hooks import evaluation_mode
from layersift.score.gradients import require_labels

if TYPE_CHECKING:
    from layersift.score.subject import Subject

RANK, ALPHA = 8, 16
LEARNING_RATE = 1e-3
BATCH_SIZE = 8


@contextmanager
def with_adapters(subject: Subject, **settings: Any) -> Iterator[Any]:
    """The subject's model with LoRA on all layers, dropout off, and a head that learns; afterwards all is as before."""
    from peft import LoraConfig

    from layersift.adapt.attach import attached
    from layersift.adapt.full import head_parameters

    targets = getattr(subject.adapter, "target_modules", None)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **settings)
    model = subject.model
    labelled = subject.kind in ("classification", "regression")
    head = {name: dict(model.named_parameters())[name] for name in head_parameters(model)} if labelled else {}
    before = {name: p.detach().clone() for name, p in head.items()}
    layers = range(subject.num_layers)
    batches = _batches(subject) if settings.get("init_lora_weights") == "eva" else ()
    adapters = attached(model, subject.stack, layers, config, subject.seed, batches)
    with evaluation_mode(model), torch.enable_grad(), adapters as adapted:
        for parameter in head.values():
            parameter.requires_grad_()
        try:
            yield adapted
        finally:
            for name, parameter in head.items():
                parameter.data.copy_(before[name])


def _batches(subject: Subject) -> list[dict[str, torch.Tensor]]:
    """The sample in batches on the model's device, with labels where all samples have them."""
    cut = [subject.examples[i : i + BATCH_SIZE] for i in range(0, len(subject.examples), BATCH_SIZE)]
    with suppress(DataError):
        return [_batch(subject, members) for members in cut]
    collated = (collate(members, subject.pad_id) for members in cut)
    return [{name: v.to(subject.model.device) for name, v in batch.items()} for batch in collated]


def _batch(subject: Subject, members: Sequence[Example]) -> dict[str, torch.Tensor]:
    require_labels(members, subject.kind)
    device = subject.model.device
    return {name: v.to(device) for name, v in labelled_batch(members, subject.pad_id, subject.kind).items()}


def mean_loss(subject: Subject, model: nn.Module, members: Sequence[Example]) -> torch.Tensor:
    """Loss a labelled token (or other labelled thing) of some samples, one number with a graph."""
    batch = _batch(subject, members)
    labels = batch["labels"] if subject.seq2seq else batch.pop("labels")
    logits = getattr(model(**batch), "logits", None)
    if logits is None:
        raise SelectionError(
            f"{type(subject.model).__name__} has no head, so it cannot be trained; load it for the task"
        )
    losses, counts = sample_losses(logits, labels, subject.kind, subject.seq2seq)
    return losses.sum() / counts.sum()


def train_steps(
    subject: Subject,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    examples: Sequence[Example],
    steps: int,
    seed: int,
) -> None:
    """AdamW with a rate that falls to nothing, over the examples in an order that the seed decides."""
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for step in range(steps):
        while len(order) < BATCH_SIZE:
            order += torch.randperm(len(examples), generator=generator).tolist()
        chosen, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        torch.autograd.backward(mean_loss(subject, model, [examples[i] for i in chosen]))
        optimizer.step()
        optimizer.zero_grad()
