"""Peak memory of a stretch of work, and the seconds of a training step on this machine."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layersift.step.prefix import frozen_prefix

TIMED, MOST_SECONDS = 3, 4.0  # steps of the largest batch that is timed; and what all steps but the first may take


def seconds_a_step(
    adapted: Any,
    batches: Sequence[dict[str, torch.Tensor]],
    loss_of: Callable[[Any, dict[str, Any]], torch.Tensor],
    most_seconds: float = MOST_SECONDS,
) -> tuple[int, float]:
    """Time a forward and a backward pass with an update by nothing, on as large a batch as the time allows.

    One step warms up and one is timed in any case. A further one is begun only if it would end within
    ``most_seconds`` of the first, by what the one before took for each number in its batch.

    Args:
        adapted: the model with what is trained.
        batches: model inputs with labels, on the model's device, the smallest first.
        loss_of: the training's loss of a batch.

    Returns:
        Which of the batches was the largest that was timed, and the median seconds of its steps.
    """
    trained = [p for p in adapted.parameters() if p.requires_grad]
    adapted.train()
    optimizer = torch.optim.AdamW(trained, lr=0.0)

    def step(batch: dict[str, torch.Tensor]) -> float:
        _finish(adapted.device)
        started = time.perf_counter()
        loss_of(adapted, dict(batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        _finish(adapted.device)
        return time.perf_counter() - started

    with frozen_prefix(adapted):
        step(batches[0])  # the first passes of all take longer
        end = time.perf_counter() + most_seconds
        place, seconds = 0, step(batches[0])
        while larger := [
            i for i in range(place + 1, len(batches)) if _ends_by(end, seconds, batches[place], batches[i])
        ]:
            place = larger[-1]
            seconds = step(batches[place])
        timed = [seconds]
        while len(timed) < TIMED and time.perf_counter() + max(timed) <= end:
            timed.append(step(batches[place]))
    return place, statistics.median(timed)


def _ends_by(end: float, seconds: float, timed: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> bool:
    """Whether a step of ``batch`` would end in time if each number in it took as long as in a batch that was timed."""
    return time.perf_counter() + seconds * _numbers(batch) / _numbers(timed) <= end


def _numbers(batch: dict[str, torch.Tensor]) -> int:
    return sum(value.numel() for value in batch.values())


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class PeakMemory:
    """Bytes above what was in use at the start; None where the system does not tell."""

    bytes: int | None = None


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _return_free_memory() -> None:
    """Garbage of earlier work would otherwise hide what this work needs."""
    gc.collect()
    with suppress(OSError, AttributeError):  # the C library is not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _begin_matrix_products(device: torch.device) -> None:
    """The first products of a process, forward and backward, allocate tens of MiB of workspaces that stay (65 on an
    H100): they would be counted in its first training alone."""
    ones = torch.ones(8, 8, device=device, requires_grad=True)
    torch.autograd.grad(torch.nn.functional.linear(ones, ones, ones[0]).sum(), ones)
    torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak above the memory in use on entry: of the GPU's allocator, or of the process on Linux."""
    _return_free_memory()
    peak = PeakMemory()
    if device.type == "cuda":
        _begin_matrix_products(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    try:
        _CLEAR.write_text("5")  # resets the high-water mark, proc(5)
        before = _status("VmRSS")
    except (OSError, StopIteration):
        yield peak
        return
    yield peak
    peak.bytes = max(0, _status("VmHWM") - before)
