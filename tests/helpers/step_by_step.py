"""The cost of one training step, counted over the whole step on the meta device: what sums have to come to."""

from __future__ import annotations

import collections
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from layersift.adapt.store import head_parameters
from layersift.adapt.targets import adapt_without_weights, without_weights
from layersift.plan.planner import ADAM_MOMENTS
from layersift.plan.training import LABELLED, StepSize, step_inputs, step_loss
from layersift.step.prefix import frozen_prefix
from layersift.step.strategy import hand_past


class TrialStep:
    """A training step of a model without weights, adapted; what it takes is found by running it, each thing by itself.

    Layers that carry adapters and are not trained rest: they have been trained before, and are going to be again.
    """

    def __init__(
        self,
        model: nn.Module,
        stack: Any,
        layers: Sequence[int],
        config: Any,
        size: StepSize,
        *,
        trained: Sequence[int] | None = None,
        passed: bool = False,
    ) -> None:
        trial: Any = without_weights(model)
        trial.requires_grad_(False)
        adapted = adapt_without_weights(trial, stack, layers, config)
        blocks = stack.blocks(trial)
        resting = [blocks[layer] for layer in set(layers) - set(layers if trained is None else trained)]
        self.resting = [p for block in resting for p in block.parameters() if p.requires_grad]
        for parameter in self.resting:
            parameter.requires_grad_(False)
        self.added = 0 if config is None else 1  # whole blocks are of the loaded model, adapters come on top
        self.kind = size.kind
        if size.kind in LABELLED:
            wanted = set(head_parameters(trial))
            for name, parameter in trial.named_parameters():
                if name in wanted:
                    parameter.requires_grad_()
        if size.checkpointing:
            # The older name is deprecated where there is the newer one.
            enable = getattr(trial, "activation_checkpointing_enable", trial.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
            trial.enable_input_require_grads()
        for block in [block for i, block in enumerate(blocks) if i not in layers] if passed else []:
            hand_past(block, lambda: True)
        self.adapted, self.blocks, self.batch = adapted.train(), blocks, step_inputs(model, size)
        self.parameters = [p for p in adapted.parameters() if p.requires_grad]

    @property
    def count(self) -> int:
        """Numbers that are trained at this step, a head's included."""
        return sum(p.numel() for p in self.parameters)

    @property
    def state_bytes(self) -> int:
        """Of adapters beside the model, their gradients and AdamW's moments."""
        return sum((1 + self.added + ADAM_MOMENTS) * p.numel() * p.element_size() for p in self.parameters)

    @property
    def resting_bytes(self) -> int:
        """Of adapters that are trained at other steps, and AdamW's moments."""
        return sum((self.added + ADAM_MOMENTS) * p.numel() * p.element_size() for p in self.resting)

    def flops(self) -> tuple[int, tuple[int, ...]]:
        """Of a step; and of the forward passes of the first block, the first two, and so on."""
        return self._measured[:2]

    def peak_bytes(self) -> int:
        """:attr:`Plan.memory_bytes`, and what is kept of the layers that rest."""
        return self.state_bytes + self.resting_bytes + self.activation_bytes()

    def activation_bytes(self) -> int:
        """The most that is alive at once of all but :attr:`state_bytes`."""
        return self._measured[2]

    @cached_property
    def _measured(self) -> tuple[int, tuple[int, ...], int]:
        """One step's FLOPs, those of its forward passes, and its most bytes."""
        counter, fused = Counter(self.parameters), FusedAttention()

        def counted() -> int:
            return counter.products.total() + fused.flops

        forward = counting_forward(self.blocks, counted)
        with frozen_prefix(self.adapted), fused.replacing_torchs(), counter, forward as passes:
            torch.autograd.backward(step_loss(self.adapted, dict(self.batch), self.kind))
        return counted(), tuple(passes), counter.most


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


class Counter(TorchDispatchMode):
    """Counts FLOPs of each operation by torch's formulas, and the bytes of all storages that are alive, gradients of
    parameters apart. Torch's own counter hooks modules, too, and keeps what checkpointing would free."""

    def __init__(self, trained: Sequence[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.products: collections.Counter[str] = collections.Counter()
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
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.products[str(func.overloadpacket)] += formula(*args, **(kwargs or {}), out_val=output)
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
