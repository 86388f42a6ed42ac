"""Peak memory of a stretch of work."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

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
