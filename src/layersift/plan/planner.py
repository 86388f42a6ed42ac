"""What training any layers of a model costs: the sum over its blocks, as each of them takes part."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from layersift.adapt.targets import resolve_targets
from layersift.config.train import Strategy
from layersift.errors import AdapterError, SelectionError
from layersift.models.stacks import BlockStack
from layersift.plan.block import BlockCost
from layersift.plan.blocks import Blocks
from layersift.plan.frame import Frame
from layersift.plan.model import MeasuredModel
from layersift.plan.training import LABELLED, Length, StepSize, TrainingPlan, spared_flops

if TYPE_CHECKING:
    from peft import PeftConfig

ADAM_MOMENTS = 2


@dataclass(frozen=True)
class Plan:
    """The cost of one training step on one batch.

    Args:
        layers: that carry adapters.
        parameters: that are trained, a head included.
        flops: of one step, forward and backward.
        adapter_bytes: what is trained at some step beside the loaded model, a copied head included.
        gradient_bytes: of what is trained at this step.
        optimizer_bytes: AdamW's moments.
        activation_bytes: the most that is alive at once of everything else, above the loaded model.
        forward_flops: (M,), the forward passes of the first block, the first two, and so on.

    Examples:
        >>> from layersift import Planner, StepSize, find_stack
        >>> from peft import LoraConfig
        >>> from transformers import AutoModelForSequenceClassification
        >>> model = AutoModelForSequenceClassification.from_pretrained("model")
        >>> planner = Planner(model, find_stack(model), LoraConfig(r=4))
        >>> plan = planner.step([2, 3], StepSize("classification", batch_size=8, tokens=32))
        >>> plan.layers, plan.parameters, plan.memory_bytes == plan.state_bytes + plan.activation_bytes
        ((2, 3), 1090, True)
    """

    layers: tuple[int, ...]
    parameters: int
    flops: int
    adapter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    forward_flops: tuple[int, ...] = ()

    @property
    def state_bytes(self) -> int:
        """Adapters, their gradients and AdamW's moments."""
        return self.adapter_bytes + self.gradient_bytes + self.optimizer_bytes

    @property
    def memory_bytes(self) -> int:
        """Peak above the loaded model."""
        return self.state_bytes + self.activation_bytes


class Planner:
    """Costs of training steps of one model with one adapter config, for any layers, batches and lengths.

    Args:
        model: with or without weights; left as it was.
        stack: of the blocks that are chosen among.
        config: of the adapters; None where the blocks themselves are trained.
        measured: the same model and stack, where another config's costs have been asked for.

    Examples:
        >>> from layersift import Planner, StepSize, find_stack
        >>> from peft import LoraConfig
        >>> from transformers import AutoModelForSequenceClassification
        >>> model = AutoModelForSequenceClassification.from_pretrained("model")
        >>> planner = Planner(model, find_stack(model), LoraConfig(r=4))
        >>> size = StepSize("classification", batch_size=8, tokens=32)
        >>> round(planner.step([2, 3], size).flops / planner.step(range(4), size).flops, 2)
        0.69
    """

    def __init__(
        self, model: nn.Module, stack: BlockStack, config: PeftConfig | None, measured: MeasuredModel | None = None
    ) -> None:
        self.stack, self.config = stack, config
        self.measured = measured or MeasuredModel(model, stack)
        self._everywhere = range(stack.num_layers)
        self._copies: dict[tuple[int, ...], Blocks] = {}
        self._alike: bool | None = None
        self._plans: dict[tuple[tuple[int, ...], tuple[int, ...], StepSize, bool], Plan] = {}

    def step(
        self,
        layers: Sequence[int],
        size: StepSize,
        *,
        trained: Sequence[int] | None = None,
        skipping: bool = False,
    ) -> Plan:
        """The cost of one training step.

        Args:
            layers: that carry adapters.
            trained: of these, the ones that are trained at this step; None: all of them. The others have been trained
                before, and are going to be again.
            skipping: whether blocks without adapters hand their gradients past themselves (DropBP).

        Raises:
            SelectionError: a layer that the stack does not have.
            AdapterError: see :func:`layersift.adapt.targets.resolve_targets`; or the method needs the weights to begin.
            ModelError: the model's operations depend on values, as those of some mixtures of experts do.
        """
        layers = tuple(layers)
        if beyond := [layer for layer in layers if not 0 <= layer < self.stack.num_layers]:
            raise SelectionError(
                f"layers {beyond}: the stack {self.stack.path} has layers 0 to {self.stack.num_layers - 1}"
            )
        trained = layers if trained is None else tuple(trained)
        key = (layers, trained, size, skipping)
        if key not in self._plans:
            self._plans[key] = self._plan(*key)
        return self._plans[key]

    def _plan(self, layers: tuple[int, ...], trained: tuple[int, ...], size: StepSize, skipping: bool) -> Plan:
        adapted, measured = self._adapted(layers), self.measured
        saved = self._trained_themselves(adapted, layers)
        layers, trained = tuple(sorted({*layers, *saved})), tuple(sorted({*trained, *saved}))
        roles = measured.roles(layers, trained, size, skipping)
        carrying = set(layers)
        frame = measured.frame(size, tuple(role.graph for role in roles))
        costs = [
            measured.blocks.cost(
                adapted if place in carrying else measured.blocks.plain, place, role, size, frame.checkpointed
            )
            for place, role in enumerate(roles)
        ]
        head = measured.head if size.kind in LABELLED else []
        own = _unique([*head, *adapted.outside, *(p for layer in trained for p in adapted.trained[layer])])
        resting = _unique(p for layer in layers for p in adapted.trained[layer] if id(p) not in own)
        forward = accumulate(cost.forward for cost in costs)
        carried = _bytes(own.values()) + _bytes(resting.values())
        return Plan(
            layers=tuple(layer for layer in layers if layer not in saved),
            parameters=sum(p.numel() for p in own.values()),
            flops=frame.flops + sum(cost.forward + cost.backward for cost in costs),
            adapter_bytes=0 if self.config is None else carried,  # whole blocks are of the loaded model
            gradient_bytes=_bytes(own.values()),
            optimizer_bytes=ADAM_MOMENTS * carried,
            activation_bytes=_peak(frame, costs),
            forward_flops=tuple(map(add, forward, frame.forward_flops)),
        )

    def training(
        self, layers: Sequence[int], size: StepSize, strategy: Strategy, length: Length, seed: int = 0
    ) -> TrainingPlan:
        """The cost of all steps of a training, on batches of one size.

        Raises:
            SelectionError: the strategy cannot be followed on these layers.
            AdapterError, ModelError: see :meth:`step`.
        """
        layers, count = tuple(layers), self.stack.num_layers
        strategy.require_layers(layers, count)
        sets = [strategy.trained(layers, count, step, length.steps, seed) for step in range(length.steps)]
        flops_of = {trained: self._step_flops(layers, trained, size, strategy.share) for trained in set(sets)}
        flops = np.array([flops_of[trained] for trained in sets], float)
        whole = self.step(layers, size)
        if length.kept and strategy.keeps_prefix:
            lowest = np.array([trained[0] for trained in sets])
            flops -= spared_flops(lowest, np.array([0, *whole.forward_flops], float), length, size.batch_size)
        return TrainingPlan(float(flops.sum()), whole.parameters, flops)

    def heaviest_step(self, layers: Sequence[int], size: StepSize, strategy: Strategy) -> Plan:
        """The step of a training that takes the most memory, whatever is drawn.

        Raises:
            SelectionError, AdapterError, ModelError: see :meth:`training`.
        """
        strategy.require_layers(layers, self.stack.num_layers)
        return self.step(layers, size, trained=strategy.heaviest(layers))

    def _step_flops(self, layers: tuple[int, ...], trained: tuple[int, ...], size: StepSize, skipped: float) -> int:
        """FLOPs of a step, where gradients are skipped the mean over what is drawn."""
        flops = self.step(layers, size, trained=trained).flops
        if skipped:
            flops += round(skipped * (self.step(layers, size, trained=trained, skipping=True).flops - flops))
        return flops

    def parameters(self, layers: Sequence[int]) -> int:
        """Numbers that are trained on some layers, a head apart.

        Raises:
            AdapterError: see :meth:`step`.
        """
        layers = tuple(layers)
        adapted = self._adapted(layers)
        every = (*layers, *self._trained_themselves(adapted, layers))
        own = _unique([*adapted.outside, *(p for layer in every for p in adapted.trained[layer])])
        return sum(p.numel() for p in own.values())

    @contextmanager
    def adapted_model(self, layers: Sequence[int]) -> Iterator[nn.Module]:
        """The model on the meta device with adapters on some layers, and nothing else that is trained.

        Raises:
            AdapterError: see :meth:`step`.
        """
        adapted, plain = self._adapted(tuple(layers)), self.measured.blocks.plain
        for layer in layers:
            for parameter in adapted.trained[layer]:
                parameter.requires_grad_()
            _put(plain.model, self.stack.block_path(layer), adapted.modules[layer])
        try:
            yield plain.model
        finally:
            for layer in layers:
                _put(plain.model, self.stack.block_path(layer), plain.modules[layer])

    def _adapted(self, layers: tuple[int, ...]) -> Blocks:
        """Blocks of which those of ``layers`` carry adapters: of all layers, where each is adapted like the others."""
        if self._alike is None:
            self._alike = not self.measured.blocks.shares_weights and self._adapts_alike()
        carrying = tuple(self._everywhere) if self._alike else layers
        if carrying not in self._copies:
            self._copies[carrying] = self.measured.blocks.adapted(carrying, self.config)
        return self._copies[carrying]

    def _trained_themselves(self, adapted: Blocks, layers: tuple[int, ...]) -> set[int]:
        """The blocks beside these layers that are trained as they are, by PEFT's modules_to_save.

        Raises:
            AdapterError: something outside of the blocks is, too, whose gradients this plan does not follow.
        """
        names = getattr(self.config, "modules_to_save", None)
        if not names:
            return set()
        if adapted.outside:
            raise AdapterError(f"modules_to_save {sorted(names)}: what lies outside of the blocks cannot be planned")
        return {layer for layer in self._everywhere if adapted.trained[layer]} - set(layers)

    def _adapts_alike(self) -> bool:
        """Whether what is adapted in a layer does not depend on which others are chosen."""
        if self.config is None:
            return True
        if getattr(self.config, "modules_to_save", None):
            return False  # it names blocks
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                targets, _ = resolve_targets(
                    self.measured.blocks.plain.model, self.stack, self._everywhere, self.config
                )
        except AdapterError:
            return False  # it may be of some layers
        return len({targets.leaves(layer) for layer in self._everywhere}) == 1


def _peak(frame: Frame, costs: Sequence[BlockCost]) -> int:
    """The most bytes that are alive at once: those around the blocks, and what blocks keep and need at each moment."""
    most, kept = 0, 0  # beyond what the frame knows of
    for place, ((before, now), cost) in enumerate(zip(frame.forward, costs, strict=True)):
        most = max(most, before + kept, now + kept - cost.entering + cost.forward_peak)
        kept += cost.held - cost.leaving - _twice(cost, place in frame.holds)
    kept = sum(cost.held - cost.leaving - _twice(cost, place in frame.holds_on) for place, cost in enumerate(costs))
    most = max(most, frame.head_peak + kept)
    saved = [cost.saved - _twice(cost, place in frame.holds_on) for place, cost in enumerate(costs)]
    kept = sum(saved)
    most = max(most, frame.loss_peak + kept)
    for place in sorted(frame.backward, reverse=True):
        before, now = frame.backward[place]
        most = max(
            most, before + kept, now + kept - costs[place].gradient + costs[place].backward_peak - costs[place].saved
        )
        kept -= saved[place]
    return max(most, frame.last_peak + kept)


def _twice(cost: BlockCost, held: bool) -> int:
    """Bytes of a block's input, where both it and what is around it keep that."""
    return cost.entering if held and cost.keeps_entering else 0


def _put(model: nn.Module, path: str, block: nn.Module) -> None:
    container, _, name = path.rpartition(".")
    setattr(model.get_submodule(container), name, block)


def _unique(parameters: Iterable[nn.Parameter]) -> dict[int, nn.Parameter]:
    return {id(parameter): parameter for parameter in parameters}


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)
