"""What a whole training by a strategy is going to cost, from plans of the different steps that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from layersift.config.strategy import Strategy
from layersift.load.blocks import BlockStack
from layersift.step.plan import StepSize, TrialStep

if TYPE_CHECKING:
    from peft import PeftConfig

PLANNED = 9  # steps that differ in their lowest trained layer; what lies between is interpolated


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


class TrainingPlanner:
    """Plans trainings of one model and method; steps that several of them take are planned once."""

    def __init__(self, model: nn.Module, stack: BlockStack, config: PeftConfig | None, size: StepSize) -> None:
        self.model, self.stack, self.config, self.size = model, stack, config, size
        self._steps: dict[tuple[tuple[int, ...], tuple[int, ...], float], tuple[float, tuple[int, ...]]] = {}

    def plan(self, layers: Sequence[int], strategy: Strategy, length: Length, seed: int = 0) -> TrainingPlan:
        """The cost of all steps of a training.

        Where states are kept, a batch begins behind the block that all of its examples were kept behind in the epoch
        before; each example is taken to have met any step of that epoch.

        Raises:
            SelectionError: the strategy cannot be followed on these layers.
            AdapterError, ModelError: see :func:`layersift.step.plan.plan`.
        """
        layers, count = tuple(layers), self.stack.num_layers
        strategy.require_layers(layers, count)
        sets = [strategy.trained(layers, count, step, length.steps, seed) for step in range(length.steps)]
        lowest = np.array([trained[0] for trained in sets])
        different = dict(zip(lowest.tolist(), sets, strict=True))  # one set for each lowest layer
        shown = sorted(different)
        if len(shown) > PLANNED:
            shown = [shown[i] for i in np.linspace(0, len(shown) - 1, PLANNED).round().astype(int)]
        steps = {low: self._step(layers, different[low], strategy.share) for low in shown}
        flops = np.interp(lowest, shown, [steps[low][0] for low in shown])
        if length.kept and strategy.keeps_prefix:
            forward = np.array([0, *steps[shown[-1]][1]], float)
            flops = flops - _skipped(lowest, forward, length, self.size.batch_size)
        return TrainingPlan(float(flops.sum()), self._trial(layers).count, flops)

    def peak(self, layers: Sequence[int], strategy: Strategy) -> int:
        """The most bytes that any step takes above the loaded model, whatever is drawn.

        Raises:
            SelectionError, AdapterError, ModelError: see :meth:`plan`.
        """
        strategy.require_layers(layers, self.stack.num_layers)
        return self._trial(layers, strategy.heaviest(layers)).peak_bytes()

    def _trial(self, layers: Sequence[int], trained: Sequence[int] | None = None, *, passed: bool = False) -> TrialStep:
        return TrialStep(self.model, self.stack, layers, self.config, self.size, trained=trained, passed=passed)

    def _step(self, layers: tuple[int, ...], trained: tuple[int, ...], dropped: float) -> tuple[float, tuple[int, ...]]:
        """Operations of a step, of steps that drop gradients the mean over what is drawn; and of its forward passes."""
        key = (layers, trained, dropped)
        if key not in self._steps:
            flops, forward = self._trial(layers, trained).flops()
            if dropped:
                least, _ = self._trial(layers, trained, passed=True).flops()
                flops = round(flops + dropped * (least - flops))
            self._steps[key] = (flops, forward)
        return self._steps[key]


def _skipped(lowest: np.ndarray, forward: np.ndarray, length: Length, batch_size: int) -> np.ndarray:
    """Operations that each step is spared, for states that were kept in the epoch before."""
    epoch = max(1, round(length.steps / length.epochs))
    spared, blocks = np.zeros(len(lowest)), np.diff(forward)
    for begin in range(epoch, len(lowest), epoch):
        before, now = lowest[begin - epoch : begin], lowest[begin : begin + epoch]
        # The shallowest of a batch's examples decides: all of them lie behind block d with this probability.
        reached = [np.mean(before >= depth) ** batch_size for depth in range(1, int(now.max()) + 1)]
        within = np.concatenate([[0.0], np.cumsum(blocks[: len(reached)] * reached)])
        spared[begin : begin + epoch] = within[now]
    return spared
