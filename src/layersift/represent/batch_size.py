"""How many tokens one batch holds, by the memory at hand."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

ON_A_CPU, ON_A_GPU = 4096, 32768  # more is no faster
FEWEST = 512
MEMORY_SHARE = 0.25  # of what is free; a batch that does not fit all the same is halved


def token_budget(block: nn.Module, device: torch.device) -> int:
    """Padded tokens a batch, a power of two, so that small changes of the free memory change nothing.

    A block holds a few vectors of its widest map's width for each token, and a few of the hidden states' width.
    """
    sides = [side for p in block.parameters() if p.ndim >= 2 and p.shape[-1] > 1 for side in p.shape[-2:]]
    # Quantised weights are packed; their modules know their sides.
    sides += [getattr(m, side) for m in block.modules() for side in ("in_features", "out_features") if hasattr(m, side)]
    widest, narrowest = max(sides, default=1), min(sides, default=1)
    size = next((p.element_size() for p in block.parameters() if p.is_floating_point()), 4)
    affordable = MEMORY_SHARE * _free_bytes(device) / (size * (4 * widest + 8 * narrowest))
    most = ON_A_GPU if device.type == "cuda" else ON_A_CPU
    budget = most
    while budget > affordable and budget > FEWEST:
        budget //= 2
    return budget


def _free_bytes(device: torch.device) -> float:
    if device.type != "cuda":
        return free_memory()
    # What PyTorch's allocator keeps for reuse is not free to the driver, but it is to this process.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept)


def free_memory() -> float:
    """Bytes of memory that are available, the page cache included; no limit where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        return float("inf")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
