"""Short trainings that some criteria look at: adapters on a model for a while, a few steps, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from layersift.adapt.attach import attached
from layersift.adapt.store import head_parameters
from layersift.data.examples import Example, collate, labelled_batch, sample_losses, wrap_model_errors
from layersift.errors import DataError, SelectionError
from layersift.models.stacks import no_cache
from layersift.represent.hooks import evaluation_mode
from layersift.score.probe import ProbeBatch, require_labels

RANK, ALPHA = 8, 16
LEARNING_RATE = 1e-3
BATCH_SIZE = 8


@contextmanager
def with_adapters(probe: ProbeBatch, **settings: Any) -> Iterator[Any]:
    """The probe's model with LoRA on all layers, dropout off, and a head that learns; afterwards all is as before."""
    from peft import LoraConfig

    targets = getattr(probe.adapter, "target_modules", None)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **settings)
    model = probe.model
    labelled = probe.kind in ("classification", "regression")
    head = {name: dict(model.named_parameters())[name] for name in head_parameters(model)} if labelled else {}
    before = {name: p.detach().clone() for name, p in head.items()}
    layers = range(probe.num_layers)
    batches = _batches(probe) if settings.get("init_lora_weights") == "eva" else ()
    adapters = attached(model, probe.stack, layers, config, probe.seed, batches)
    with evaluation_mode(model), torch.enable_grad(), adapters as adapted:
        for parameter in head.values():
            parameter.requires_grad_()
        try:
            yield adapted
        finally:
            for name, parameter in head.items():
                parameter.data.copy_(before[name])


def _batches(probe: ProbeBatch) -> list[dict[str, torch.Tensor]]:
    """The sample in batches on the model's device, with labels where all samples have them."""
    cut = [probe.examples[i : i + BATCH_SIZE] for i in range(0, len(probe.examples), BATCH_SIZE)]
    with suppress(DataError):
        return [_batch(probe, members) for members in cut]
    collated = (collate(members, probe.pad_id) for members in cut)
    return [{name: v.to(probe.model.device) for name, v in batch.items()} for batch in collated]


def _batch(probe: ProbeBatch, members: Sequence[Example]) -> dict[str, torch.Tensor]:
    require_labels(members, probe.kind)
    device = probe.model.device
    return {name: v.to(device) for name, v in labelled_batch(members, probe.pad_id, probe.kind).items()}


def mean_loss(probe: ProbeBatch, model: nn.Module, members: Sequence[Example]) -> torch.Tensor:
    """Loss a labelled token (or other labelled thing) of some samples, one number with a graph."""
    batch = _batch(probe, members)
    labels = batch["labels"] if probe.seq2seq else batch.pop("labels")
    with wrap_model_errors(model, members):
        logits = getattr(model(**batch, **no_cache(model)), "logits", None)
    if logits is None:
        raise SelectionError(f"{type(probe.model).__name__} has no head, so it cannot be trained; load it for the task")
    losses, counts = sample_losses(logits, labels, probe.kind, probe.seq2seq)
    return losses.sum() / counts.sum()


def train_steps(
    probe: ProbeBatch,
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
        torch.autograd.backward(mean_loss(probe, model, [examples[i] for i in chosen]))
        optimizer.step()
        optimizer.zero_grad()
