"""What is counted on the meta device, FLOPs and bytes alive; and known shapes, so that an operation runs once."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

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


class Meter(TorchDispatchMode):
    """Counts FLOPs, and the bytes of all storages that operations make, while these are alive.

    Gradients of ``trained`` are left out: they are counted with the optimizer's state. While the meter is active, fused
    attention is that of GPUs: see :func:`_fused_attention`.

    Attributes:
        flops: of matrix products, convolutions and attention so far.
        now: bytes that are alive.
        most: the largest number of bytes alive at once since :meth:`mark`.
    """

    def __init__(self, trained: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.now = self.most = 0
        self._known: set[int] = set()
        self._trained = list(trained)

    def mark(self) -> int:
        """Begin to look for the peak anew; bytes of the peak until now."""
        most, self.most = self.most, self.level()
        return most

    def level(self) -> int:
        """Bytes that are alive, gradients of trained parameters apart."""
        return self.now - self._gradients()

    @staticmethod
    def watch(tensor: torch.Tensor) -> Callable[[], Any]:
        """Gives None as soon as a tensor's storage is no longer alive."""
        return weakref.ref(tensor.untyped_storage())

    def __enter__(self) -> Any:
        # When Python happens to collect garbage must not decide what is counted.
        self._collects_garbage = gc.isenabled()
        gc.disable()
        self._attention = _fused_attention(self)
        self._attention.__enter__()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._attention.__exit__(*error)
        if self._collects_garbage:
            gc.enable()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        output = run_on_meta(func, args, kwargs)
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += int(count(*args, **kwargs, out_val=output))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in inputs and id(storage) not in self._known:
                    self._count(storage)
        return output

    def _count(self, storage: Any) -> None:
        size, key = storage.nbytes(), id(storage)
        self._known.add(key)
        self.now += size
        if self.now > self.most:
            self.most = max(self.most, self.level())
        weakref.finalize(storage, self._forget, key, size)

    def _gradients(self) -> int:
        return sum(p.grad.untyped_storage().nbytes() for p in self._trained if p.grad is not None)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Attention(torch.autograd.Function):
    """Fused attention, as GPUs and CPUs run it: neither keeps a matrix of tokens by tokens."""

    @staticmethod
    def forward(ctx: Any, meter: Meter, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # Heads behind tokens in memory, as the fused kernels leave them.
        batch, heads, tokens, _ = query.shape
        output = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1]))
        ctx.meter = meter
        meter.flops += 2 * _product_flops(query, key)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        ctx.meter.flops += 5 * _product_flops(query, key)
        return None, torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def _fused_attention(meter: Meter) -> Iterator[None]:
    """While active, fused attention stands in for ``scaled_dot_product_attention``, which the meta device would unfold.

    With dropout it does so only where there is a GPU: CPUs have no fused kernel that draws it.
    """
    functional: Any = torch.nn.functional
    original = functional.scaled_dot_product_attention

    def fused(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if query.device.type != "meta" or (kwargs.get("dropout_p") and not torch.cuda.is_available()):
            return original(query, key, value, *args, **kwargs)
        return _Attention.apply(meter, query, key, value)  # type: ignore[no-untyped-call]

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def _product_flops(query: torch.Tensor, key: torch.Tensor) -> int:
    """FLOPs of one product of queries (B, H, T, d) and keys (B, H', T', d)."""
    return 2 * query.numel() * key.shape[-2]
