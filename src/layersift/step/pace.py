"""How fast this machine trains, from a few real steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from layersift.step.prefix import frozen_prefix

WARM, TIMED = 1, 3  # steps


def seconds_a_step(
    adapted: Any, batches: Sequence[dict[str, torch.Tensor]], loss_of: Callable[[Any, dict[str, Any]], torch.Tensor]
) -> float:
    """Seconds of a forward and a backward pass with an update by nothing, the mean over a few.

    Args:
        adapted: the model with what is trained.
        batches: model inputs with labels, on the model's device; used one after the other.
        loss_of: the training's loss of a batch.
    """
    trained = [p for p in adapted.parameters() if p.requires_grad]
    adapted.train()
    optimizer, taken = torch.optim.AdamW(trained, lr=0.0), 0.0
    with frozen_prefix(adapted):
        for step in range(WARM + TIMED):
            batch = dict(batches[step % len(batches)])
            _finish(adapted.device)
            started = time.perf_counter()
            loss_of(adapted, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            _finish(adapted.device)
            taken += time.perf_counter() - started if step >= WARM else 0.0
    return taken / TIMED


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
