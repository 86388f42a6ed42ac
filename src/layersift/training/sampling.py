"""The order of training: random, but with samples of like length in a batch, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

BATCHES_IN_A_POOL = 50


class LengthGroupedSampler(Sampler[int]):
    """Yields every index once an epoch. Random pools of some batches are sorted by length, their batches shuffled.

    The order depends on the lengths, the seed and the epoch alone, so a resumed training goes on in the same order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = self.batch_size * BATCHES_IN_A_POOL
        batches = []
        for start in range(0, len(order), pool):
            members = sorted(order[start : start + pool], key=lambda i: -self.lengths[i])
            batches += [members[i : i + self.batch_size] for i in range(0, len(members), self.batch_size)]
        # A short batch must stay the last one: the loader cuts the stream into batches again.
        full = [b for b in batches if len(b) == self.batch_size]
        short = [i for b in batches if len(b) < self.batch_size for i in b]
        for at in torch.randperm(len(full), generator=generator).tolist():
            yield from full[at]
        yield from short
