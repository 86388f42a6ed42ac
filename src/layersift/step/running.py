"""Whether a training goes on, and reaches what it trains: Trainers tell callbacks of neither."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn

from layersift.errors import TrainingError, listed


class Running:
    """The training that is running where this is made: an exception or Ctrl-C ends it without a word."""

    def __init__(self) -> None:
        self._loop = _loop_of_trainer()

    def has_ended(self) -> bool:
        """Whether its loop has been left; not known of loops that are no Trainer's."""
        if self._loop is None or _is_within(self._loop, sys._getframe()):
            return False
        return not any(_is_within(self._loop, frame) for frame in sys._current_frames().values())


def _loop_of_trainer() -> FrameType | None:
    """The outermost of the frames in which the nearest Trainer up the stack runs."""
    trainer, found = None, None
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if owner is not None and (owner is trainer or (trainer is None and hasattr(owner, "callback_handler"))):
            trainer, found = owner, frame
        frame = frame.f_back
    return found


def _is_within(loop: FrameType, frame: FrameType | None) -> bool:
    while frame is not None:
        if frame is loop:
            return True
        frame = frame.f_back
    return False


class Reached:
    """Which trained blocks the backward passes of a training's first step give gradients.

    Checkpointing, a wrapper or a detached tensor can cut a block off from the loss: nothing fails, and the rest trains.

    Args:
        model: what is trained, whose forward passes are watched.
        blocks: by what they are called in a message; those that hold what is trained at this step.
    """

    def __init__(self, model: nn.Module, blocks: dict[str, nn.Module]) -> None:
        self._blocks = blocks
        self._ran: set[str] = set()
        self._reached: set[str] = set()
        self._wanted = False  # whether the forward pass that is running is for a backward pass
        handles = [model.register_forward_pre_hook(self._begin)]
        for name, block in blocks.items():
            trained = [p for p in block.parameters() if p.requires_grad and p.is_leaf and not hasattr(p, "ds_id")]
            if trained:  # shards of parameters tell nothing of their own
                handles.append(block.register_forward_pre_hook(self._noting(name)))
                handles += [_on_gradient(parameter, self._reaching(name)) for parameter in trained]
        self._handles: list[Any] = handles

    def _begin(self, *given: Any) -> None:
        self._wanted = torch.is_grad_enabled()

    def _noting(self, name: str) -> Callable[..., None]:
        def note(*given: Any) -> None:
            if self._wanted:
                self._ran.add(name)

        return note

    def _reaching(self, name: str) -> Callable[..., None]:
        return lambda parameter: self._reached.add(name)

    def stop(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def require(self) -> None:
        """Raise TrainingError if a block ran forward, is trained still, and no backward pass has reached it."""
        missed = [name for name in sorted(self._ran - self._reached) if is_trained(self._blocks[name])]
        if missed:
            raise TrainingError(
                f"no gradient reaches what is trained in {listed(missed, 120)}: nothing there would learn. Where "
                "gradient checkpointing is on, gradient_checkpointing_kwargs={'use_reentrant': False} is the usual cure"
            )


def is_trained(block: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in block.parameters())


def _on_gradient(parameter: Any, call: Callable[[Any], None]) -> Any:
    return parameter.register_post_accumulate_grad_hook(call)
