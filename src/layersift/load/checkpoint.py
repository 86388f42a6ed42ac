"""What a checkpoint must hold: numbers, and all of them but a new head's."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from layersift.errors import ModelError
from layersift.load.blocks import find_stacks

log = logging.getLogger(__name__)


def require_complete(model: nn.Module, report: Any, name: str, new_head: bool) -> None:
    """A head may be new; anything else with random weights would be ranked and trained without anyone noticing.

    A pooler may be missing, too, as in checkpoints of masked language models; that is logged.

    Args:
        report: what transformers says of loading it.
        new_head: whether the task brings a head.

    Raises:
        ModelError: the checkpoint lacks something else.
    """
    missing = {str(key) for key in report["missing_keys"]} | {str(key[0]) for key in report["mismatched_keys"]}
    pooler = {key for key in missing if ".pooler." in f".{key}"}
    lacking = missing - pooler
    if new_head:
        below = _below_the_head(model)
        lacking = {key for key in lacking if key.startswith(below)}
    if lacking:
        raise ModelError(
            f"{name!r} lacks weights for {len(lacking)} parameters, such as {min(lacking)}; only a new head may be "
            "missing"
        )
    if pooler:
        log.warning("%s: the checkpoint has no %s; it is new", name, min(pooler).rpartition(".")[0])


def _below_the_head(model: nn.Module) -> tuple[str, ...]:
    """How the names begin of what holds the blocks or the embeddings."""
    names = {stack.path for stack in find_stacks(model)}
    with suppress(NotImplementedError, AttributeError):
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        names |= {name for name, module in model.named_modules() if module is embeddings}
    return tuple(f"{name.partition('.')[0]}." for name in names)


def require_finite_weights(module: nn.Module, model: str, prefix: str = "") -> None:
    """Refuse a model, or a block of one, that holds something else than numbers.

    What is kept on disk until it runs is not looked at.

    Args:
        model: what the message calls it.
        prefix: of the weights' names, where ``module`` is a part of it.

    Raises:
        ModelError: a weight is NaN or infinite; the message names it.
    """
    key = first_not_finite(module.named_parameters())
    if key is not None:
        raise ModelError(
            f"{model}: the weights {prefix}{key} hold NaN or infinity; nothing from there on would mean anything"
        )


def first_not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; those on the meta device hold nothing."""
    for name, value in named:
        if value.is_floating_point() and value.device.type != "meta" and not bool(torch.isfinite(value).all()):
            return name
    return None
