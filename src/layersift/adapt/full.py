"""Full fine-tuning of the selected blocks: no adapter, the blocks' own weights are trained and saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from layersift.errors import AdapterError, wrap_library_errors
from layersift.models.stacks import BlockStack

WEIGHTS_FILE = "blocks.safetensors"


def unfreeze_blocks(model: nn.Module, stack: BlockStack, layers: Sequence[int], with_head: bool) -> nn.Module:
    """Train some blocks, with ``with_head`` also what lies outside of the backbone, and nothing else."""
    prefixes = tuple(f"{stack.block_path(layer)}." for layer in layers)
    head = set(head_parameters(model)) if with_head else set()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes) or name in head)
    return model


def head_parameters(model: Any) -> Iterator[str]:
    """Names of the parameters outside of the backbone."""
    prefix = f"{model.base_model_prefix}."
    yield from (name for name, _ in model.named_parameters() if not name.startswith(prefix))


def save_blocks(model: nn.Module, directory: Path) -> Path:
    """Write the trained weights, under their full names."""
    trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    path = directory / WEIGHTS_FILE
    save_file(trained, path)
    return path


def load_blocks(model: nn.Module, directory: Path) -> nn.Module:
    """Put trained weights into a fresh model.

    Raises:
        AdapterError: the file holds weights that the model does not have.
    """
    with wrap_library_errors(
        AdapterError,
        f"{directory / WEIGHTS_FILE}: the trained weights are not those of this model",
        "copy the whole run again",
    ):
        weights: dict[str, torch.Tensor] = load_file(directory / WEIGHTS_FILE)
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise AdapterError(f"{directory / WEIGHTS_FILE} holds {unknown[0]!r}, which the model does not have")
    return model
