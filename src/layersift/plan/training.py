"""What a plan is made for: the size of a training step, read without values, and the length of the training."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from msgspec import Meta
from torch import nn

from layersift.config.fields import Checked
from layersift.config.recipe import TaskKind
from layersift.errors import ModelError
from layersift.models.stacks import is_encoder_decoder
from layersift.step.losses import ResponseLoss

LABELLED = ("classification", "regression")  # kinds of task whose model has a head that is trained


@dataclass(frozen=True)
class StepSize(Checked):
    """What a training step is run on.

    Args:
        kind: ``classification``, ``regression``, ``instruction`` or ``text``.
        batch_size: samples of a forward pass.
        tokens: of a sample.
        response_share: the fraction of the tokens that the loss is taken of, where text is written.
        checkpointing: gradient checkpointing, above the frozen prefix.
        image: channels, height and width, where images are all that the model reads.

    Examples:
        >>> from layersift import StepSize
        >>> size = StepSize("instruction", batch_size=8, tokens=512, response_share=0.25)
        >>> size.tokens * size.response_share
        128.0
    """

    kind: TaskKind
    batch_size: Annotated[int, Meta(ge=1, le=10**6)]
    tokens: Annotated[int, Meta(ge=1, le=10**7)]
    response_share: float = 0.5
    checkpointing: bool = False
    image: tuple[int, int, int] | None = None


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


def step_inputs(model: nn.Module, size: StepSize) -> dict[str, torch.Tensor]:
    """Inputs of a step on the meta device: images, where they are all that a model reads, or tokens; with labels.

    Raises:
        ModelError: see :func:`image_shape`.
    """
    batch_size, tokens = size.batch_size, size.tokens
    image = size.image or image_shape(model)
    ids = torch.zeros(batch_size, tokens, dtype=torch.long, device="meta")
    read = {"input_ids": ids}
    if image is not None:
        read = {"pixel_values": torch.zeros(batch_size, *image, device="meta")}
    if size.kind == "classification":
        return read | {"labels": torch.zeros(batch_size, dtype=torch.long, device="meta")}
    if size.kind == "regression":
        return read | {"labels": torch.zeros(batch_size, device="meta")}
    if is_encoder_decoder(model):  # which reads the prompt, and writes as many tokens as the response has
        written = max(1, round(size.response_share * tokens))
        return {"input_ids": ids, "labels": torch.zeros(batch_size, written, dtype=torch.long, device="meta")}
    # On the CPU, so that it can be seen which tokens count.
    labels = torch.zeros(batch_size, tokens, dtype=torch.long)
    labels[:, : tokens - max(1, round(size.response_share * tokens))] = -100
    if model not in _MASKS:
        _MASKS[model] = _accepted_mask(model)
    masked = {} if _MASKS[model] is None else {"attention_mask": _mask(_MASKS[model], batch_size, tokens)}
    return {"input_ids": ids, "labels": labels} | masked


# Of a mask of all ones. One of four dimensions is taken as it is by most models; others are looked into, which needs
# values, but by some models, which take them alone, or none.
_DIMENSIONS = (4, 2, None)
_MASKS: WeakKeyDictionary[nn.Module, int | None] = WeakKeyDictionary()


def _accepted_mask(model: nn.Module) -> int | None:
    """Of how many dimensions a mask is that the model takes without values; None: it takes no mask."""
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    for dimensions in _DIMENSIONS:
        masked = {} if dimensions is None else {"attention_mask": _mask(dimensions, 1, 2)}
        with suppress(Exception), torch.no_grad():
            model(input_ids=ids, **masked)
            return dimensions
    return _DIMENSIONS[0]


def _mask(dimensions: int | None, batch_size: int, tokens: int) -> torch.Tensor:
    shape = (batch_size, tokens) if dimensions == 2 else (1, 1, 1, 1)
    return torch.ones(shape, dtype=torch.bool, device="meta")


def step_loss(model: Any, inputs: dict[str, torch.Tensor], kind: TaskKind) -> torch.Tensor:
    """The loss that a training of a kind takes of :func:`step_inputs`."""
    if kind in LABELLED or is_encoder_decoder(model):
        loss: torch.Tensor = model(**inputs).loss
        return loss
    return ResponseLoss(head_is_all=True)(model, dict(inputs))


@dataclass(frozen=True)
class Length:
    """How long a training is.

    Args:
        steps: optimizer steps.
        epochs: passes over the data in these steps.
        kept: whether the outputs of the frozen prefix are kept from epoch to epoch.

    Examples:
        >>> from layersift import Length
        >>> length = Length(steps=400, epochs=4)
        >>> length.steps / length.epochs
        100.0
    """

    steps: int
    epochs: float = 1.0
    kept: bool = False


@dataclass(frozen=True)
class TrainingPlan:
    """The cost of a training.

    Args:
        flops: of all steps.
        parameters: trained at some step, a head included.
        flops_by_step: (steps,), FLOPs of each.

    Examples:
        >>> from layersift import Length, Planner, StepSize, find_stack, parse_strategy
        >>> from peft import LoraConfig
        >>> from transformers import AutoModelForSequenceClassification
        >>> model = AutoModelForSequenceClassification.from_pretrained("model")
        >>> planner, size = Planner(model, find_stack(model), LoraConfig(r=4)), StepSize("classification", 8, 32)
        >>> plan = planner.training(range(4), size, parse_strategy("freezing"), Length(steps=40, epochs=4))
        >>> len(plan.flops_by_step), plan.parameters
        (40, 2114)
    """

    flops: float
    parameters: int
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
