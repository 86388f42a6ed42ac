"""What stages ask of any model's structure, each question answered in one place."""

from __future__ import annotations

from typing import Any

from torch import nn


def is_encoder_decoder(model_or_config: Any) -> bool:
    """Whether an encoder reads and a decoder writes."""
    config = getattr(model_or_config, "config", model_or_config)
    return bool(getattr(config, "is_encoder_decoder", False))


def is_linear(module: nn.Module) -> bool:
    """A matrix that maps hidden states, GPT-2's transposed one included, as PEFT counts them for ``all-linear``."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
