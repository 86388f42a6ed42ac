"""The course of a whole training: how long it is, what it costs, and what kept states spare it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Length:
    """How long a training is."""

    steps: int
    epochs: float = 1.0
    kept: bool = False  # whether what the frozen prefix gives is kept from epoch to epoch


@dataclass(frozen=True)
class TrainingPlan:
    """The cost of a training."""

    flops: float  # floating-point operations of all steps
    parameters: int  # trained at some step, a head included
    flops_by_step: np.ndarray = field(compare=False, repr=False)


def spared_flops(lowest: np.ndarray, forward: np.ndarray, length: Length, batch_size: int) -> np.ndarray:
    """FLOPs that each step is spared, for states that were kept in the epoch before.

    A batch begins behind the block that all of its examples were kept behind in the epoch before; each example is taken
    to have met any step of that epoch.

    Args:
        lowest: the lowest layer trained at each step, (steps,).
        forward: FLOPs of the forward pass of no block, the first, the first two, ...
    """
    epoch = max(1, round(length.steps / length.epochs))
    spared, blocks = np.zeros(len(lowest)), np.diff(forward)
    for begin in range(epoch, len(lowest), epoch):
        before, now = lowest[begin - epoch : begin], lowest[begin : begin + epoch]
        # The shallowest of a batch's examples decides: all of them lie behind block d with this probability.
        behind = [np.mean(before >= depth) ** batch_size for depth in range(1, int(now.max()) + 1)]
        within = np.concatenate([[0.0], np.cumsum(blocks[: len(behind)] * behind)])
        spared[begin : begin + epoch] = within[now]
    return spared
