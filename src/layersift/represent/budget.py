"""How many tokens one batch holds, by the memory at hand."""

from __future__ import annotations

import os

import torch
from torch import nn

ON_A_CPU, ON_A_GPU = 4096, 32768  # more is no faster
FEWEST = 512
MEMORY_SHARE = 0.25  # of what is free; a batch that does not fit all the same is halved


def token_budget(block: nn.Module, device: torch.device) -> int:
    """Padded tokens a batch, a power of two, so that small changes of the free memory change nothing.

    A block holds a few vectors of its widest map's width for each token, and a few of the hidden states' width.
    """
    weights = [p for p in block.parameters() if p.ndim >= 2]
    widest = max((max(p.shape[-2:]) for p in weights), default=1)
    narrowest = min((min(p.shape[-2:]) for p in weights), default=1)
    size = next((p.element_size() for p in block.parameters() if p.is_floating_point()), 4)
    affordable = MEMORY_SHARE * _free_bytes(device) / (size * (4 * widest + 8 * narrowest))
    most = ON_A_GPU if device.type == "cuda" else ON_A_CPU
    budget = most
    while budget > affordable and budget > FEWEST:
        budget //= 2
    return budget


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # not Linux
        return float("inf")
