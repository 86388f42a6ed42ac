"""What is counted while a step runs without weights: bytes that are alive, and operations up to each block."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextmanager
def counting_forward(blocks: Sequence[nn.Module], count: Callable[[], int]) -> Iterator[list[int]]:
    """What has been counted behind each block in its first forward pass, since that of the first block began."""
    found: list[int] = []
    begun: list[int] = []

    def behind(place: int) -> Callable[..., None]:
        return lambda *given: found.append(count() - begun[0]) if place == len(found) else None

    handles = [blocks[0].register_forward_pre_hook(lambda *given: begun.append(count()))]
    handles += [block.register_forward_hook(behind(place)) for place, block in enumerate(blocks)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they are alive, gradients of parameters apart."""

    def __init__(self, trained: Sequence[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()
        self._trained = trained

    def __enter__(self) -> Any:
        # When Python happens to collect garbage must not decide what is counted.
        self._collected = gc.isenabled()
        gc.disable()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if self._collected:
            gc.enable()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        output = func(*args, **(kwargs or {}))
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
        self.most = max(self.most, self.now - self._gradients())
        weakref.finalize(storage, self._forget, key, size)

    def _gradients(self) -> int:
        """Those of trained parameters, which are counted with the optimizer's state."""
        return sum(p.grad.untyped_storage().nbytes() for p in self._trained if p.grad is not None)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class FusedAttention:
    """Fused attention, as GPUs and CPUs run it: neither keeps a matrix of tokens by tokens. The meta device would.

    With dropout CPUs keep one too, since they have no fused kernel that draws it.
    """

    def __init__(self) -> None:
        self.flops = 0

    @contextmanager
    def replacing_torchs(self) -> Iterator[None]:
        """While active, this stands in for ``scaled_dot_product_attention``."""
        functional: Any = torch.nn.functional
        original = functional.scaled_dot_product_attention
        counting = self

        class Fused(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
                # Heads behind tokens in memory, as the fused kernels leave them.
                batch, heads, tokens, _ = query.shape
                output = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
                ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1]))
                counting.flops += 2 * _products(query, key)
                return output

            @staticmethod
            def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
                query, key, value, _, _ = ctx.saved_tensors
                counting.flops += 5 * _products(query, key)
                return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

        def fused(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            if query.device.type != "meta" or (kwargs.get("dropout_p") and not torch.cuda.is_available()):
                return original(query, key, value, *args, **kwargs)
            return Fused.apply(query, key, value)  # type: ignore[no-untyped-call]

        functional.scaled_dot_product_attention = fused
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = original


def _products(query: torch.Tensor, key: torch.Tensor) -> int:
    """Operations of one product of queries (B, H, T, d) and keys (B, H', T', d)."""
    return 2 * query.numel() * key.shape[-2]
