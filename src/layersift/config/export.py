"""What an export says beside the layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from layersift.config.fields import Checked


@dataclass(frozen=True)
class ExportSettings(Checked):
    """The adapters' shape for another trainer. What is None is as the trainer's own config has it, or as in `train`."""

    rank: Annotated[int, Meta(ge=1, le=10**5, description="LoRA rank. [--into's, or 8]")] | None = None
    ranks: Annotated[
        dict[str | int, int],
        Meta(
            description="WHAT=rank: of attention, mlp, a module's name, or a layer's index.",
            extra={"flag": "--rank-of"},
        ),
    ] = field(default_factory=dict)
    alpha: Annotated[float, Meta(gt=0, le=1e6, description="LoRA alpha. [--into's, or 16]")] | None = None
    dropout: Annotated[float, Meta(ge=0, lt=1, description="Dropout in the adapters. [--into's, or 0]")] | None = None
    target_modules: Annotated[
        str | None, Meta(description="all-linear, a regex, or names separated by commas. [PEFT's default]")
    ] = None
