"""What a whole training by a strategy is going to cost, from plans of the different steps that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from layersift.config.strategy import Strategy
from layersift.load.blocks import BlockStack
from layersift.step.plan import Plan, StepSize, plan

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
    memory_bytes: int  # the most that any step takes above the loaded model
    parameters: int  # trained at some step, a head included


def plan_training(
    model: nn.Module,
    stack: BlockStack,
    layers: Sequence[int],
    config: PeftConfig | None,
    size: StepSize,
    strategy: Strategy,
    length: Length,
    seed: int = 0,
) -> TrainingPlan:
    """The cost of all steps of a training.

    Where states are kept, a batch begins behind the block that all of its examples were kept behind in the epoch
    before; each example is taken to have met any step of that epoch.

    Raises:
        SelectionError: the strategy cannot be followed on these layers.
        AdapterError, ModelError: see :func:`layersift.step.plan.plan`.
    """
    strategy.require_layers(layers, stack.num_layers)
    sets = [strategy.trained(layers, stack.num_layers, step, length.steps, seed) for step in range(length.steps)]
    lowest = np.array([trained[0] for trained in sets])
    different = dict(zip(lowest.tolist(), sets, strict=True))  # one set for each lowest layer
    shown = sorted(different)
    if len(shown) > PLANNED:
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, PLANNED).round().astype(int)]
    plans = {low: _plan(model, stack, layers, config, size, strategy, different[low]) for low in shown}
    most = plan(model, stack, layers, config, size) if strategy.name == "rotating" else plans[shown[0]]
    flops = np.interp(lowest, shown, [plans[low].flops for low in shown])
    if length.kept and strategy.name != "rotating":
        forward = np.array([0, *plans[shown[-1]].forward_flops], float)
        flops = flops - _skipped(lowest, forward, length, size.batch_size)
    return TrainingPlan(float(flops.sum()), max(p.memory_bytes for p in plans.values()), most.parameters)


def _plan(
    model: nn.Module,
    stack: BlockStack,
    layers: Sequence[int],
    config: PeftConfig | None,
    size: StepSize,
    strategy: Strategy,
    trained: Sequence[int],
) -> Plan:
    """A step's plan; of steps that drop gradients the mean over what is drawn."""
    whole = plan(model, stack, layers, config, size, trained=trained)
    if strategy.name != "dropping":
        return whole
    least = plan(model, stack, layers, config, size, trained=trained, passed=True)
    mean = round(whole.flops + strategy.share * (least.flops - whole.flops))
    return Plan(whole.layers, whole.parameters, mean, whole.state_bytes, whole.activation_bytes, whole.forward_flops)


def _skipped(lowest: np.ndarray, forward: np.ndarray, length: Length, batch_size: int) -> np.ndarray:
    """Operations that each step is spared, for states that were kept in the epoch before."""
    epoch = max(1, round(length.steps / length.epochs))
    spared = np.zeros(len(lowest))
    for step in range(epoch, len(lowest)):
        before = lowest[(step // epoch - 1) * epoch : (step // epoch) * epoch]
        # The shallowest of a batch's examples decides: all of them lie behind block d with this probability.
        reached = np.array([np.mean(before >= depth) ** batch_size for depth in range(1, lowest[step] + 1)])
        spared[step] = float(np.diff(forward)[: lowest[step]] @ reached)
    return spared
