"""Run operations on the meta device, each kind of call once: later ones make tensors of the shapes that are known."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

MOST = 20_000  # kinds of calls that are kept


class _Made(NamedTuple):
    """A tensor that an operation made."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


_known: dict[Any, tuple[type, tuple[_Made | None, ...]]] = {}


def run_on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``func(*args, **kwargs)`` gives, within a dispatch mode; tensors of the meta device have no values.

    PyTorch works out the shapes of most operations in Python, which takes most of a plan's time.
    """
    key = _key(func, args, kwargs)
    if key is not None and (known := _known.get(key)) is not None:
        kind, made = known
        outputs = [
            None if one is None else torch.empty_strided(one.shape, one.stride, dtype=one.dtype, device="meta")
            for one in made
        ]
        return outputs[0] if kind is torch.Tensor else kind(outputs)
    output = func(*args, **kwargs)
    if key is not None and (shapes := _shapes(output, (*args, *kwargs.values()))) is not None:
        if len(_known) >= MOST:
            _known.clear()
        _known[key] = shapes
    return output


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Equal of calls that give new tensors of equal shapes; None of those that change an input or give a part of it."""
    if not _makes_anew(func):
        return None
    try:
        key = (func, tuple(map(_told, args)), tuple((name, _told(value)) for name, value in kwargs.items()))
        hash(key)
    except TypeError:
        return None
    return key


@functools.cache
def _makes_anew(func: Any) -> bool:
    """Whether an operation changes no input, and gives no part of one."""
    return all(one.alias_info is None for one in (*func._schema.arguments, *func._schema.returns))


def _told(value: Any) -> Any:
    """What an output's shape can depend on of an argument.

    Raises:
        TypeError: its values might matter.
    """
    if isinstance(value, torch.Tensor):
        if value.device.type != "meta" or type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise TypeError
        return _Made(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(map(_told, value))
    return type(value), value  # 1, 1.0 and True are equal, and give other types


def _shapes(output: Any, inputs: tuple[Any, ...]) -> tuple[type, tuple[_Made | None, ...]] | None:
    """The new tensors of an output; None where there is something else in it, or a tensor shares another's memory."""
    outputs = output if isinstance(output, list | tuple) else [output]
    tensors = [one for one in outputs if one is not None]
    if not all(
        type(one) is torch.Tensor and one.device.type == "meta" and one.layout == torch.strided for one in tensors
    ):
        return None
    own = {id(one.untyped_storage()) for one in tensors}
    given = {id(one.untyped_storage()) for one in tree_leaves(inputs) if isinstance(one, torch.Tensor)}
    if len(own) < len(tensors) or own & given:
        return None
    made = tuple(None if one is None else _Made(tuple(one.shape), one.stride(), one.dtype) for one in outputs)
    for one, shape in zip(tensors, (m for m in made if m is not None), strict=True):
        alone = torch.empty_strided(shape.shape, shape.stride, dtype=shape.dtype, device="meta")
        if one.storage_offset() or one.untyped_storage().nbytes() != alone.untyped_storage().nbytes():
            return None
    return (type(output) if isinstance(output, list | tuple) else torch.Tensor), made
