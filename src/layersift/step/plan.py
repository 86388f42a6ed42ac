"""What a training step is going to cost, found by running it without weights or data.

On PyTorch's meta device a step runs through the very operations that training runs through, and none of them computes
anything: their floating-point operations are counted, and the bytes of every tensor that is alive. So the plan knows
any architecture, any PEFT method, gradient checkpointing and the frozen prefix, because it does not model them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from msgspec import Meta
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from layersift.adapt.full import head_parameters
from layersift.adapt.inspection import adapt_without_weights, without_weights
from layersift.config.data import TaskKind
from layersift.config.fields import Checked
from layersift.errors import AdapterError, ModelError
from layersift.load.blocks import BlockStack
from layersift.step.counters import FusedAttention, PeakBytes, counting_forward
from layersift.step.prefix import frozen_prefix
from layersift.step.response_loss import ResponseLoss
from layersift.step.strategy import hand_past

if TYPE_CHECKING:
    from peft import PeftConfig

ADAM_MOMENTS = 2


@dataclass(frozen=True)
class Plan:
    """The cost of one training step on one batch."""

    layers: tuple[int, ...]
    parameters: int  # trained, a head included
    flops: int  # floating-point operations, forward and backward
    state_bytes: int  # adapters, their gradients and AdamW's moments
    activation_bytes: int  # the most that is alive at once of everything else, above the loaded model
    forward_flops: tuple[int, ...] = ()  # of those, the forward passes of the first block, the first two, ...

    @property
    def memory_bytes(self) -> int:
        """Peak above the loaded model."""
        return self.state_bytes + self.activation_bytes


@dataclass(frozen=True)
class StepSize(Checked):
    """What a training step is run on."""

    kind: TaskKind
    batch_size: Annotated[int, Meta(ge=1, le=10**6)]  # samples
    tokens: Annotated[int, Meta(ge=1, le=10**7)]  # a sample
    response_share: float = 0.5  # of the tokens, where text is written, on how many the loss is taken
    checkpointing: bool = False  # gradient checkpointing, above the frozen prefix
    image: tuple[int, int, int] | None = None  # channels, height, width, where images are all that is read


def plan(
    model: nn.Module,
    stack: BlockStack,
    layers: Sequence[int],
    config: PeftConfig | None,
    size: StepSize,
    *,
    trained: Sequence[int] | None = None,
    passed: bool = False,
) -> Plan:
    """The cost of one training step.

    Args:
        model: with or without weights; left as it was.
        config: of the adapters; None where the blocks themselves are trained.
        trained: of the layers that carry adapters, those that are trained at this step; None: all of them.
        passed: whether blocks without adapters hand their gradients past themselves.

    Raises:
        AdapterError: see :func:`layersift.adapt.targets.resolve_targets`; or the method needs the weights to begin.
        ModelError: the model's operations depend on values, as those of some mixtures of experts do.
    """
    trial = TrialStep(model, stack, layers, config, size, trained=trained, passed=passed)
    flops, forward = trial.flops()
    return Plan(
        layers=tuple(layers),
        parameters=trial.count,
        flops=flops,
        state_bytes=trial.state_bytes,
        activation_bytes=trial.activation_bytes(),
        forward_flops=forward,
    )


class TrialStep:
    """A training step of a model without weights, adapted; what it takes is found by running it, each thing by itself.

    Arguments and errors are those of :func:`plan`. Layers that carry adapters and are not trained rest: they have been
    trained before, and are going to be again.
    """

    def __init__(
        self,
        model: nn.Module,
        stack: BlockStack,
        layers: Sequence[int],
        config: PeftConfig | None,
        size: StepSize,
        *,
        trained: Sequence[int] | None = None,
        passed: bool = False,
    ) -> None:
        trial: Any = without_weights(model)
        trial.requires_grad_(False)
        try:
            adapted = adapt_without_weights(trial, stack, layers, config)
        except NotImplementedError:
            name = type(config).__name__
            raise AdapterError(f"{name} begins from the weights, so its cost cannot be planned") from None
        blocks = stack.blocks(trial)
        resting = [blocks[layer] for layer in set(layers) - set(layers if trained is None else trained)]
        self.resting = [p for block in resting for p in block.parameters() if p.requires_grad]
        for parameter in self.resting:
            parameter.requires_grad_(False)
        self.labelled = size.kind in ("classification", "regression")
        if self.labelled:
            wanted = set(head_parameters(trial))
            for name, parameter in trial.named_parameters():
                if name in wanted:
                    parameter.requires_grad_()
        if size.checkpointing:
            # The older name is deprecated where there is the newer one.
            enable = getattr(trial, "activation_checkpointing_enable", trial.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
            trial.enable_input_require_grads()
        for block in [block for i, block in enumerate(blocks) if i not in layers] if passed else []:
            hand_past(block, lambda: True)
        self.adapted, self.blocks, self.batch = adapted.train(), blocks, _batch(size, size.image or image_shape(model))
        self.parameters = [p for p in adapted.parameters() if p.requires_grad]
        self._name = type(model).__name__

    @property
    def count(self) -> int:
        """Numbers that are trained at this step, a head's included."""
        return sum(p.numel() for p in self.parameters)

    @property
    def state_bytes(self) -> int:
        """Of adapters, their gradients and AdamW's moments."""
        return sum((2 + ADAM_MOMENTS) * p.numel() * p.element_size() for p in self.parameters)

    @property
    def resting_bytes(self) -> int:
        """Of adapters that are trained at other steps, and AdamW's moments."""
        return sum((1 + ADAM_MOMENTS) * p.numel() * p.element_size() for p in self.resting)

    def flops(self) -> tuple[int, tuple[int, ...]]:
        """Of a step; and of the forward passes of the first block, the first two, and so on."""
        counter, fused = FlopCounterMode(display=False), FusedAttention()

        def counted() -> int:
            return int(counter.get_total_flops()) + fused.flops

        with self._running(), fused.replacing_torchs(), counter, counting_forward(self.blocks, counted) as forward:
            self._step()
        return counted(), tuple(forward)

    def peak_bytes(self) -> int:
        """:attr:`Plan.memory_bytes`, and what is kept of the layers that rest."""
        return self.state_bytes + self.resting_bytes + self.activation_bytes()

    def activation_bytes(self) -> int:
        """The most that is alive at once of all but :attr:`state_bytes`."""
        peak = PeakBytes(self.parameters)
        with self._running(), FusedAttention().replacing_torchs(), peak:
            self._step()
        return peak.most

    @contextmanager
    def _running(self) -> Iterator[None]:
        try:
            with frozen_prefix(self.adapted):
                yield
        except (RuntimeError, NotImplementedError) as error:
            why = " ".join(str(error).split())[:160]
            raise ModelError(f"{self._name} does not run without weights, so it cannot be planned: {why}") from None

    def _step(self) -> None:
        self.adapted.zero_grad()
        batch = dict(self.batch)
        loss = self.adapted(**batch).loss if self.labelled else ResponseLoss(head_is_all=True)(self.adapted, batch)
        torch.autograd.backward(loss)


def image_shape(model: nn.Module) -> tuple[int, int, int] | None:
    """Channels, height and width of what a model of images alone reads, by its config; None of other models.

    Raises:
        ModelError: the config does not say.
    """
    if getattr(model, "main_input_name", "") != "pixel_values":
        return None
    config: Any = model.config
    side = getattr(config, "image_size", None)
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    if not height or not width:
        raise ModelError(f"{type(model).__name__}: its config names no image_size, so it cannot be planned")
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


def _batch(size: StepSize, image: tuple[int, int, int] | None) -> dict[str, torch.Tensor]:
    """Inputs of a step without values: images of a shape, where they are all that is read, or tokens."""
    batch_size, tokens = size.batch_size, size.tokens
    ids = torch.zeros(batch_size, tokens, dtype=torch.long, device="meta")
    read = {"input_ids": ids}
    if image is not None:
        read = {"pixel_values": torch.zeros(batch_size, *image, device="meta")}
    if size.kind == "classification":
        return read | {"labels": torch.zeros(batch_size, dtype=torch.long, device="meta")}
    if size.kind == "regression":
        return read | {"labels": torch.zeros(batch_size, device="meta")}
    # On the CPU, so that it can be seen which tokens count.
    labels = torch.zeros(batch_size, tokens, dtype=torch.long)
    labels[:, : tokens - max(1, round(size.response_share * tokens))] = -100
    # A mask of four dimensions is taken as it is; any other, or none, is looked into, which needs values.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}
