"""Whether a training goes on, and reaches what it trains: Trainers tell callbacks of neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layersift.errors import TrainingError, listed
from layersift.represent.hooks import tensors_in


class Running:
    """Whether a training goes on, by what its Trainer tells callbacks: an exception or Ctrl-C ends it without a word.

    Between two steps nothing is trained. Within one, forward passes come one after the other, and a backward pass is
    followed by the Trainer's next event before the model is called again.

    Args:
        model: what is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._in_step = self._in_pass = self._went_back = False

    def event(self, *, in_step: bool) -> None:
        """The Trainer tells of something, and trains the model from here on or does not."""
        self._in_step, self._in_pass, self._went_back = in_step, False, False

    def begin_pass(self) -> None:
        """A forward pass begins."""
        self._in_pass = True

    def end_pass(self, output: Any) -> None:
        """It has come to its end; a backward pass from what it gave may follow."""
        self._in_pass = False
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(self._go_back)  # type: ignore[no-untyped-call]

    def has_ended(self) -> bool:
        """Whether the forward pass that is about to begin is none of the training's."""
        if not self._in_step:
            return torch.is_grad_enabled() or self._model.training
        return self._in_pass or self._went_back

    def _go_back(self, gradient: torch.Tensor) -> None:
        self._went_back = True


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
