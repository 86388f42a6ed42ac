"""What a training step is going to cost, found by running it without weights or data.

On PyTorch's meta device a step runs through the very operations that training runs through, and none of them computes
anything: their floating-point operations are counted, and the bytes of every tensor that is alive. So the plan knows
any architecture, any PEFT method, gradient checkpointing and the frozen prefix, because it does not model them.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from msgspec import Meta
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from layersift.adapt.full import head_parameters
from layersift.adapt.inspection import adapt_without_weights, without_weights
from layersift.config.data import TaskKind
from layersift.config.fields import Checked
from layersift.errors import AdapterError, ModelError
from layersift.load.blocks import BlockStack
from layersift.step.prefix import frozen_prefix
from layersift.step.response_loss import ResponseLoss
from layersift.step.strategy import hand_past

if TYPE_CHECKING:
    from peft import PeftConfig

ADAM_MOMENTS = 2


@dataclass(frozen=True)
class Plan:
    """The cost of one training step on one batch."""

    layers: tuple[int, ...]
    parameters: int  # trained, a head included
    flops: int  # floating-point operations, forward and backward
    state_bytes: int  # adapters, their gradients and AdamW's moments
    activation_bytes: int  # the most that is alive at once of everything else, above the loaded model
    forward_flops: tuple[int, ...] = ()  # of those, the forward passes of the first block, the first two, ...

    @property
    def memory_bytes(self) -> int:
        """Peak above the loaded model."""
        return self.state_bytes + self.activation_bytes


@dataclass(frozen=True)
class StepSize(Checked):
    """What a training step is run on."""

    kind: TaskKind
    batch_size: Annotated[int, Meta(ge=1, le=10**6)]  # samples
    tokens: Annotated[int, Meta(ge=1, le=10**7)]  # a sample
    response_share: float = 0.5  # of the tokens, where text is written, on how many the loss is taken
    checkpointing: bool = False  # gradient checkpointing, above the frozen prefix


def plan(
    model: nn.Module,
    stack: BlockStack,
    layers: Sequence[int],
    config: PeftConfig | None,
    size: StepSize,
    *,
    trained: Sequence[int] | None = None,
    passed: bool = False,
) -> Plan:
    """The cost of one training step.

    Args:
        model: with or without weights; left as it was.
        config: of the adapters; None where the blocks themselves are trained.
        trained: of the layers that carry adapters, those that are trained at this step; None: all of them.
        passed: whether blocks without adapters hand their gradients past themselves.

    Raises:
        AdapterError: see :func:`layersift.adapt.targets.resolve_targets`; or the method needs the weights to begin.
        ModelError: the model's operations depend on values, as those of some mixtures of experts do.
    """
    trial: Any = without_weights(model)
    trial.requires_grad_(False)
    try:
        adapted = adapt_without_weights(trial, stack, layers, config)
    except NotImplementedError:
        raise AdapterError(f"{type(config).__name__} begins from the weights, so its cost cannot be planned") from None
    blocks = stack.blocks(trial)
    for layer in set(layers) - set(layers if trained is None else trained):
        blocks[layer].requires_grad_(False)
    labelled = size.kind in ("classification", "regression")
    if labelled:
        wanted = set(head_parameters(trial))
        for name, parameter in trial.named_parameters():
            if name in wanted:
                parameter.requires_grad_()
    if size.checkpointing:
        trial.gradient_checkpointing_enable({"use_reentrant": False})
        trial.enable_input_require_grads()
    adapted.train()
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    state = sum((2 + ADAM_MOMENTS) * p.numel() * p.element_size() for p in parameters)
    batch = _batch(size)
    counter, peak, fused = FlopCounterMode(display=False), _PeakBytes(parameters), _Attention()

    def step() -> None:
        adapted.zero_grad()
        loss = adapted(**batch).loss if labelled else ResponseLoss(head_is_all=True)(adapted, dict(batch))
        torch.autograd.backward(loss)

    without = [block for i, block in enumerate(blocks) if i not in layers] if passed else []
    for block in without:
        hand_past(block, lambda: True)
    try:
        with frozen_prefix(adapted):
            # One after the other: the counter's hooks keep alive what checkpointing drops.
            with (
                fused.replacing_torchs(),
                counter,
                _counting(blocks, lambda: counter.get_total_flops() + fused.flops) as forward,
            ):
                step()
            with _Attention().replacing_torchs(), peak:
                step()
    except (RuntimeError, NotImplementedError) as error:
        why = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{type(model).__name__} does not run without weights, so it cannot be planned: {why}"
        ) from None
    return Plan(
        layers=tuple(layers),
        parameters=sum(p.numel() for p in parameters),
        flops=counter.get_total_flops() + fused.flops,
        state_bytes=state,
        activation_bytes=peak.most,
        forward_flops=tuple(forward),
    )


@contextmanager
def _counting(blocks: Sequence[nn.Module], count: Callable[[], int]) -> Iterator[list[int]]:
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


def _batch(size: StepSize) -> dict[str, torch.Tensor]:
    batch_size, tokens = size.batch_size, size.tokens
    ids = torch.zeros(batch_size, tokens, dtype=torch.long, device="meta")
    if size.kind == "classification":
        return {"input_ids": ids, "labels": torch.zeros(batch_size, dtype=torch.long, device="meta")}
    if size.kind == "regression":
        return {"input_ids": ids, "labels": torch.zeros(batch_size, device="meta")}
    # On the CPU, so that it can be seen which tokens count.
    labels = torch.zeros(batch_size, tokens, dtype=torch.long)
    labels[:, : tokens - max(1, round(size.response_share * tokens))] = -100
    # A mask of four dimensions is taken as it is; any other, or none, is looked into, which needs values.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


class _PeakBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they are alive, gradients of parameters apart."""

    def __init__(self, trained: Sequence[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()
        self._trained = trained

    def __enter__(self) -> Any:
        # When Python happens to collect garbage must not decide what is counted.
        self._collected = gc.isenabled()
        gc.collect()
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


class _Attention:
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
