"""Token budgets by the memory at hand."""

import pytest
import torch
from torch import nn

from layersift.represent import read as budget


@pytest.mark.parametrize(("free", "wanted"), [(1e12, 4096), (4 * 9216 * 4 * 2049, 2048), (1e6, 512)])
def test_a_batch_takes_a_quarter_of_what_is_free(free, wanted, monkeypatch):
    monkeypatch.setattr(budget, "_free_bytes", lambda device: free)
    block = nn.Sequential(nn.Linear(512, 1280), nn.Linear(1280, 512))  # 4 x 1280 + 8 x 512 = 9216 numbers a token
    assert budget.affordable_tokens(block, torch.device("cpu")) == wanted


def test_a_gpu_takes_more(monkeypatch):
    assert budget._free_bytes(torch.device("cpu")) > 1e6
    monkeypatch.setattr(budget, "_free_bytes", lambda device: 1e12)
    assert budget.affordable_tokens(nn.Linear(512, 512), torch.device("cuda")) == 32768


def test_what_the_allocator_keeps_for_reuse_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 80000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20000)
    assert budget._free_bytes(torch.device("cuda")) == 41000
