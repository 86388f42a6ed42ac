"""What a training step reads, without values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import nn

from layersift.config.fields import Checked
from layersift.config.inputs import TaskKind
from layersift.errors import ModelError
from layersift.step.response_loss import ResponseLoss

LABELLED = ("classification", "regression")  # kinds of task whose model has a head that is trained


@dataclass(frozen=True)
class StepSize(Checked):
    """What a training step is run on."""

    kind: TaskKind
    batch_size: Annotated[int, Meta(ge=1, le=10**6)]  # samples
    tokens: Annotated[int, Meta(ge=1, le=10**7)]  # a sample
    response_share: float = 0.5  # of the tokens, where text is written, on how many the loss is taken
    checkpointing: bool = False  # gradient checkpointing, above the frozen prefix
    image: tuple[int, int, int] | None = None  # channels, height, width, where images are all that is read


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
    # On the CPU, so that it can be seen which tokens count.
    labels = torch.zeros(batch_size, tokens, dtype=torch.long)
    labels[:, : tokens - max(1, round(size.response_share * tokens))] = -100
    # A mask of four dimensions is taken as it is; any other, or none, is looked into, which needs values.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def step_loss(model: Any, inputs: dict[str, torch.Tensor], kind: TaskKind) -> torch.Tensor:
    """The loss that a training of a kind takes of :func:`step_inputs`."""
    if kind in LABELLED:
        loss: torch.Tensor = model(**inputs).loss
        return loss
    return ResponseLoss(head_is_all=True)(model, dict(inputs))
