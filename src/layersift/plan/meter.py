"""What is counted while code runs on the meta device: floating-point operations, and the bytes that are alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from layersift.plan.shapes import run_on_meta


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
