"""Whether what enters a block carries the gradient of something that is trained.

That a state requires a gradient says little: checkpointing makes the embeddings' output require one for its own sake.
So the graph behind the state is followed to its leaves. A parameter among them, or an input of the user's that wants a
gradient, is what a gradient has to reach; where the graph cannot be followed, it is taken to be so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Wanted:
    """The inputs of a model's running forward pass that want a gradient, such as ``inputs_embeds``."""

    def __init__(self) -> None:
        self._inputs: set[int] = set()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While active, each forward pass of ``model`` says what its inputs want."""

        def hook(module: nn.Module, *given: Any) -> None:
            self._inputs = {id(t) for t in tensors_in(given) if t.requires_grad}

        handle = model.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def behind(self, value: Any) -> bool:
        """Whether a gradient has to go through ``value``, what a block is called with, to something that is trained."""
        return any(self._reaches(tensor) for tensor in tensors_in(value) if tensor.requires_grad)

    def _is_trained(self, leaf: torch.Tensor) -> bool:
        return isinstance(leaf, nn.Parameter) or id(leaf) in self._inputs

    def _reaches(self, tensor: torch.Tensor) -> bool:
        if tensor.grad_fn is None or id(tensor) in self._inputs:
            return self._is_trained(tensor)
        seen, waiting = {tensor.grad_fn}, [tensor.grad_fn]
        while waiting:
            node = waiting.pop()
            if "Checkpoint" in type(node).__name__:  # reentrant: what runs inside is not in the graph yet
                return True
            leaf = getattr(node, "variable", None)
            if leaf is not None and self._is_trained(leaf):
                return True
            following = {n for n, _ in node.next_functions if n is not None} - seen
            seen |= following
            waiting += following
        return False


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from tensors_in(inner)
