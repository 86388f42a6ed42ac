"""What the blocks of a model are called with while it runs on the meta device, and what they give."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from layersift.plan.meter import Meter
from layersift.represent.hooks import wrap_forward

_PLAIN = (bool, int, float, str, torch.dtype, torch.device, nn.Module)


@dataclass(frozen=True)
class Given:
    """An output that is an input, handed on."""

    place: int  # among the inputs


@dataclass(frozen=True)
class Call:
    """What a block was called with and what it gave, as leaves of nested values: tensors on the meta device."""

    inputs: tuple[Any, ...]
    input_spec: TreeSpec  # of (args, kwargs)
    outputs: tuple[Any, ...]
    output_spec: TreeSpec
    flops: int = 0  # of the forward pass, in the whole model

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal where two blocks are called with values of the same shapes."""
        return (str(self.input_spec), *map(_signature, self.inputs))

    def stream(self) -> int:
        """The place of the hidden states among the inputs."""
        args, kwargs = tree_unflatten(list(range(len(self.inputs))), self.input_spec)
        named = kwargs.get("hidden_states")
        for place in tree_leaves((named, args, kwargs)):
            value = self.inputs[place] if place is not None else None
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 2:
                return int(place)
        return -1

    def with_inputs(self, args: Any, kwargs: Any) -> Call:
        """A call that gives what this one gave."""
        leaves, spec = tree_flatten((args, kwargs))
        return Call(tuple(map(own_copy, leaves)), spec, self.outputs, self.output_spec, self.flops)

    def with_output(self, output: Any, flops: int, args: Any, kwargs: Any) -> Call:
        """This call, and what it gave: ``args`` and ``kwargs`` are the very ones that the block was called with."""
        leaves, spec = tree_flatten(output)
        places = {id(leaf): at for at, leaf in enumerate(tree_leaves((args, kwargs))) if isinstance(leaf, torch.Tensor)}
        outputs = tuple(Given(places[id(leaf)]) if id(leaf) in places else own_copy(leaf) for leaf in leaves)
        return Call(self.inputs, self.input_spec, outputs, spec, flops)

    def made_up(self, args: Any, kwargs: Any, make: Callable[[int, torch.Tensor], torch.Tensor]) -> Any:
        """What the block would give: tensors made from their places and their likes, and inputs that it hands on."""
        given = tree_leaves((args, kwargs))

        def leaf(at: int, value: Any) -> Any:
            if isinstance(value, Given):
                return given[value.place]
            return make(at, value) if isinstance(value, torch.Tensor) else value

        return tree_unflatten([leaf(at, value) for at, value in enumerate(self.outputs)], self.output_spec)


NO_CALL = Call((), tree_flatten(())[1], (), tree_flatten(())[1])


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """A new tensor of the same layout."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


class Listening(Meter):  # type: ignore[no-untyped-call]
    """Writes down what blocks are called with and give, and what operations they run.

    Args:
        modules: the blocks.
        kinds: of the blocks, to run only the first that is called in a way and make up what the others of its kind
            give; None: all of them run.
    """

    def __init__(self, modules: Sequence[nn.Module], kinds: Sequence[Any] | None) -> None:
        super().__init__()
        self._modules, self._kinds = modules, kinds
        self.calls: list[Call] = []
        self.traces: list[tuple[Any, ...]] = []
        self.order: list[int] = []
        self._first: dict[Any, Call] = {}
        self._operations: list[Any] = []

    def __enter__(self) -> Any:
        self._replaced = replaced_forward(self._modules, self._listening)
        self._replaced.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._replaced.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._kinds is None:
            shapes = tuple((tuple(t.shape), t.stride()) for t in tree_leaves(args) if isinstance(t, torch.Tensor))
            self._operations.append((func, shapes))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _listening(self, place: int, forward: Any, args: Any, kwargs: Any) -> Any:
        self.order.append(place)
        call, before, flops = NO_CALL.with_inputs(args, kwargs), len(self._operations), self.flops
        key = None if self._kinds is None else (self._kinds[place], call.signature)
        if key is not None and (first := self._first.get(key)) is not None:
            self.calls.append(first.with_inputs(args, kwargs))
            return self.calls[-1].made_up(args, kwargs, lambda _, like: empty_like(like))
        output = forward(*args, **kwargs)
        self.calls.append(call.with_output(output, self.flops - flops, args, kwargs))
        self.traces.append(tuple(self._operations[before:]))
        if key is not None:
            self._first[key] = self.calls[-1]
        return output


@contextmanager
def replaced_forward(blocks: Sequence[nn.Module], call: Callable[[int, Any, Any, Any], Any]) -> Iterator[None]:
    """While active, ``call`` stands in for each block's forward: given its place, its forward, args and kwargs."""

    undo = [wrap_forward(block, functools.partial(call, place)) for place, block in enumerate(blocks)]
    try:
        yield
    finally:
        for restore in reversed(undo):
            restore()


def own_copy(value: Any) -> Any:
    """A copy of what a block might change, such as a cache; of a tensor without its graph."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if value is None or isinstance(value, _PLAIN):
        return value
    return copy.deepcopy(value, {id(tensor): tensor.detach() for tensor in _tensors_of(value)})


def _tensors_of(value: Any) -> list[torch.Tensor]:
    """Those that an object such as a cache holds, in lists, dicts and attributes of any depth."""
    tensors, waiting, seen = [], [value], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, torch.Tensor):
            tensors.append(one)
        elif id(one) not in seen and not isinstance(one, (*_PLAIN, type)):
            seen.add(id(one))
            inner = one if isinstance(one, dict) else getattr(one, "__dict__", {})
            waiting += [*inner.values(), *(one if isinstance(one, list | tuple) else ())]
    return tensors


def _signature(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), str(value.dtype), value.device.type
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else type(value).__name__
