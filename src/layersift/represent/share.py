"""Several processes, each with its share of the samples; and what to do when memory runs out."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def own_share(count: int) -> list[int]:
    """The samples that this process forwards: every k-th of k processes, all of them where there is but one."""
    if not _several():
        return list(range(count))
    return list(range(distributed.get_rank(), count, distributed.get_world_size()))


def from_all_processes(value: T) -> list[T]:
    """What every process has, in the order of their ranks."""
    if not _several():
        return [value]
    found: list[T | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return [v for v in found if v is not None]


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
