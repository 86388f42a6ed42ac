"""A model's blocks on the meta device: what they are called with, which are of one kind, and what each kind costs:
one block of it is run alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_unflatten
from torch.utils.checkpoint import checkpoint

from layersift.adapt.targets import NOT_TRAINED, adapt_without_weights, without_weights
from layersift.compat import checkpoint_by, checkpoint_function
from layersift.data.examples import OF_MODELS
from layersift.errors import AdapterError, LayersiftError, ModelError, one_line
from layersift.models.stacks import BlockStack
from layersift.plan.call import Call, Listening, empty_like, own_copy
from layersift.plan.meter import Meter
from layersift.plan.training import StepSize, step_inputs, step_loss
from layersift.step.strategy import hand_past

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class Role:
    """How a block takes part in a step."""

    graph: bool  # whether its forward pass builds a graph; if not, nothing of it is kept
    trained: bool = False
    entering: tuple[int, ...] = ()  # places of the arguments that a gradient goes to
    skipped: bool = False  # the gradient is handed past the block (DropBP)


@dataclass(frozen=True)
class BlockCost:
    """FLOPs and bytes of one block. Bytes count what it makes and its input of hidden states, no other arguments."""

    forward: int  # FLOPs of the forward pass
    backward: int  # FLOPs of the backward pass, with what checkpointing runs again
    forward_peak: int  # bytes
    held: int  # bytes after the forward pass, until the model's is over; the output included
    saved: int  # bytes that wait for the backward pass
    backward_peak: int  # bytes, the gradient of the output included
    entering: int  # bytes of its input of hidden states
    keeps_entering: bool  # whether these wait for the backward pass, too
    leaving: int  # bytes of its output
    gradient: int  # bytes of the gradient of its output
    differentiable: tuple[int, ...]  # places in the output of what has a gradient


def measure_block(
    block: nn.Module, call: Call, role: Role, trained: Sequence[nn.Parameter], checkpointed: bool
) -> BlockCost:
    """Run a block forward and backward as it takes part in a step.

    Args:
        block: on the meta device, in training mode; its parameters require gradients as the role says.
        trained: its parameters that do.
        checkpointed: whether the model checkpoints the block, which does not do so itself.
    """
    undo = hand_past(block, lambda: True) if role.skipped else None
    try:
        return _measure(block, call, role, trained, checkpointed)
    finally:
        if undo is not None:
            undo()
        for parameter in trained:
            parameter.grad = None


def _measure(
    block: nn.Module, call: Call, role: Role, trained: Sequence[nn.Parameter], checkpointed: bool
) -> BlockCost:
    stream, seed = call.stream(), torch.zeros((), device="meta", requires_grad=True)
    values: list[Any] = list(map(own_copy, call.inputs))
    for place in role.entering:
        values[place] = _Source.apply(seed, values[place])  # type: ignore[no-untyped-call]
    with Meter(trained) as meter:
        if stream >= 0:
            like = call.inputs[stream]
            values[stream] = _Source.apply(seed, like) if stream in role.entering else empty_like(like)  # type: ignore[no-untyped-call]
        entering, input_of = meter.now, (meter.watch(values[stream]) if stream >= 0 else lambda: None)
        args, kwargs = tree_unflatten(values, call.input_spec)
        with torch.set_grad_enabled(role.graph):
            if checkpointed and role.graph:
                output = checkpoint(block.__call__, *args, use_reentrant=False, **kwargs)
            else:
                output = block(*args, **kwargs)
        forward, forward_peak = meter.flops, meter.most
        leaves, given = tree_leaves(output), {id(value) for value in values if isinstance(value, torch.Tensor)}
        new = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and id(leaf) not in given]
        differentiable = tuple(i for i, t in enumerate(leaves) if isinstance(t, torch.Tensor) and t.requires_grad)
        leaving = sum(t.untyped_storage().nbytes() for t in new)
        roots = [t for t in new if t.requires_grad]
        gradient = sum(t.numel() * t.element_size() for t in roots)
        values = [value for place, value in enumerate(values) if place != stream]
        del args, kwargs, leaves
        held = meter.now
        if not roots:
            return BlockCost(forward, 0, forward_peak, held, 0, 0, entering, False, leaving, 0, ())
        loss = _Sink.apply(*roots)  # type: ignore[no-untyped-call]
        one = loss.nbytes
        del output, new, roots, values
        saved, keeps_entering = meter.now - one, input_of() is not None
        meter.mark()
        loss.backward()
    return BlockCost(
        forward=forward,
        backward=meter.flops - forward,
        forward_peak=forward_peak,
        held=held,
        saved=saved,
        backward_peak=meter.most - one,
        entering=entering,
        keeps_entering=keeps_entering,
        leaving=leaving,
        gradient=gradient,
        differentiable=differentiable,
    )


class _Source(torch.autograd.Function):
    """A tensor that has a gradient, and a graph behind it that keeps nothing."""

    @staticmethod
    def forward(ctx: Any, seed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return empty_like(like)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None]:
        return None, None


class _Sink(torch.autograd.Function):
    """A loss that keeps nothing of what it is of."""

    @staticmethod
    def forward(ctx: Any, *roots: torch.Tensor) -> torch.Tensor:
        ctx.shapes = [(t.shape, t.dtype) for t in roots]
        return torch.empty((), device="meta")

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in ctx.shapes)


@contextmanager
def without_values(name: str) -> Iterator[None]:
    """While active, what a model's code raises on the meta device becomes one line.

    Raises:
        ModelError: the model's operations depend on values, as those of some mixtures of experts do.
    """
    try:
        yield
    except LayersiftError:
        raise
    except (*OF_MODELS, NotImplementedError) as error:
        raise ModelError(
            f"{name} does not run without weights, so it cannot be planned ({one_line(error)[:160]}); "
            "ask for no plan and no objective, and count by --ratio or --budget-params"
        ) from None


class Blocks:
    """The blocks of one copy of a model, plain or adapted, each with what is trained of it.

    Args:
        model: on the meta device; what requires a gradient is what is trained.
        stack: of the blocks.
        number: gives equal things equal numbers.
    """

    def __init__(self, model: nn.Module, stack: BlockStack, number: Callable[[Any], int]) -> None:
        self.model, self.modules = model.train(), stack.blocks(model)
        self.trained = [[p for p in block.parameters() if p.requires_grad] for block in self.modules]
        inside = {id(p) for block in self.trained for p in block}
        self.outside = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
        self.structures = [number(_structure(block, stack, place)) for place, block in enumerate(self.modules)]
        self._checkpointed: list[list[tuple[Any, Any]]] | None = None

    @contextmanager
    def ready(self, place: int, *, trained: bool, checkpointing: bool) -> Iterator[nn.Module]:
        """While active, a block's parameters are trained or rest, and it checkpoints itself or does not."""
        for parameter in self.trained[place]:
            parameter.requires_grad_(trained)
        switches = self._switches(place) if checkpointing else []
        for module, function in switches:
            checkpoint_by(module, function)
        try:
            yield self.modules[place]
        finally:
            for module, _ in switches:
                module.gradient_checkpointing = False

    def _switches(self, place: int) -> list[tuple[Any, Any]]:
        """What of a block checkpoints itself when the model is asked to, and how."""
        if self._checkpointed is None:
            with checkpointing(self.model):
                self._checkpointed = [
                    [
                        (m, checkpoint_function(m))
                        for m in block.modules()
                        if getattr(m, "gradient_checkpointing", False)
                    ]
                    for block in self.modules
                ]
        return self._checkpointed[place]


@contextmanager
def checkpointing(model: Any) -> Iterator[None]:
    """While active, a model checkpoints as a Trainer makes it.

    Raises:
        ModelError: it cannot.
    """
    # The older name is deprecated where there is the newer one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    try:
        enable({"use_reentrant": False})
        model.disable_input_require_grads()  # newer versions enable them, too, and would forget their first hooks
        model.enable_input_require_grads()
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be checkpointed ({one_line(error)}); leave --gradient-checkpointing away"
        ) from None
    try:
        yield
    finally:
        disable()
        model.disable_input_require_grads()


class MeasuredBlocks:
    """What the blocks of a model cost, plain and with any adapters; blocks of one kind are measured once.

    Args:
        model: with or without weights; left as it was.
        stack: of the blocks.
    """

    def __init__(self, model: nn.Module, stack: BlockStack) -> None:
        self.model, self.stack, self.name = model, stack, type(model).__name__
        plain = without_weights(model)
        plain.requires_grad_(False)
        self._numbers: dict[Any, int] = {}  # of kinds
        self.plain = Blocks(plain, stack, self._number)
        self.shares_weights = _share(self.plain.modules)
        self._kinds: list[int] | None = None  # of the blocks, by how they are built and what they do
        self._calls: dict[StepSize, list[tuple[Call, int]]] = {}
        self._costs: dict[tuple[Any, ...], BlockCost] = {}

    def adapted(self, layers: Sequence[int], config: PeftConfig | None) -> Blocks:
        """The blocks of a copy of the model with adapters on some layers, or with these layers themselves trained.

        Raises:
            AdapterError: see :func:`layersift.adapt.targets.resolve_targets`; or the method needs the weights to begin.
        """
        trial = without_weights(self.model)
        trial.requires_grad_(False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                adapt_without_weights(trial, self.stack, layers, config)
        except NotImplementedError:
            name = type(config).__name__
            raise AdapterError(f"{name} begins from the weights, so its cost cannot be planned") from None
        for name, parameter in trial.named_parameters():
            if NOT_TRAINED in name:
                parameter.requires_grad_(False)
        return Blocks(trial, self.stack, self._number)

    def calls(self, size: StepSize) -> list[Call]:
        """What each block is called with in a step.

        Raises:
            ModelError: the model does not run without weights, or not its blocks one after the other.
        """
        return [call for call, _ in self._numbered_calls(size)]

    def _numbered_calls(self, size: StepSize) -> list[tuple[Call, int]]:
        """With a number each, equal of blocks of one kind that are called alike."""
        if size not in self._calls:
            inputs = step_inputs(self.plain.model, size)
            checkpointed = checkpointing(self.plain.model) if size.checkpointing else nullcontext()
            with without_values(self.name), checkpointed, Listening(self.plain.modules, self._kinds) as heard:
                step_loss(self.plain.model, inputs, size.kind)
            if heard.order != list(range(len(self.plain.modules))):
                raise ModelError(f"{self.name} does not run its blocks once each, in order, so it cannot be planned")
            if self._kinds is None:
                both = zip(self.plain.structures, heard.traces, strict=True)
                self._kinds = [self._number(kind) for kind in both]
            calls = zip(self._kinds, heard.calls, strict=True)
            self._calls[size] = [(call, self._number((kind, call.signature))) for kind, call in calls]
        return self._calls[size]

    def cost(self, blocks: Blocks, place: int, role: Role, size: StepSize, checkpointed: bool) -> BlockCost:
        """Of a block in a step.

        Args:
            blocks: plain or adapted.
            checkpointed: whether the model checkpoints blocks, which do not do so themselves.

        Raises:
            ModelError: it does not run without weights, or not alone as it does among the others.
        """
        call, number = self._numbered_calls(size)[place]
        key = (blocks.structures[place], number, role, size.checkpointing)
        if key not in self._costs:
            on = size.checkpointing and role.graph
            with without_values(self.name), blocks.ready(place, trained=role.trained, checkpointing=on) as block:
                trained = blocks.trained[place] if role.trained else ()
                cost = measure_block(block, call, role, trained, checkpointed and on)
            if blocks is self.plain and cost.forward != call.flops:
                raise ModelError(f"{self.name}: its blocks depend on one another, so their cost cannot be planned")
            self._costs[key] = cost
        return self._costs[key]

    def _number(self, kind: Any) -> int:
        return self._numbers.setdefault(kind, len(self._numbers))


def _share(modules: Sequence[nn.Module]) -> bool:
    """Whether a parameter belongs to several blocks."""
    seen: set[int] = set()
    for module in modules:
        own = {id(parameter) for parameter in module.parameters()}
        if own & seen:
            return True
        seen |= own
    return False


def _structure(block: nn.Module, stack: BlockStack, place: int) -> tuple[Any, ...]:
    """Equal of two blocks that are built alike: their modules' classes, settings and parameters, but for the place."""
    indices, path = (place, stack.place(place)[1]), stack.block_path(place)

    def plain(key: str, value: Any) -> Any:
        """What of a module's setting may decide what it computes; None: nothing."""
        if isinstance(value, float):
            return value if value in (0.0, 1.0) else "number"
        if isinstance(value, int) and not isinstance(value, bool) and value in indices:
            return "index" if "layer" in key or "idx" in key or "index" in key else value
        if isinstance(value, dict):
            return tuple((str(k), plain(key, v)) for k, v in value.items())
        if isinstance(value, tuple | list):
            return tuple(plain(key, v) for v in value)
        if isinstance(value, str):
            return value.replace(path, "")
        return value if isinstance(value, bool | int) else None

    parts = []
    for name, module in block.named_modules():
        settings = tuple(
            (key, plain(key, value)) for key, value in sorted(vars(module).items()) if not key.startswith("_")
        )
        own = tuple((n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in module.named_parameters(recurse=False))
        buffers = tuple((n, tuple(b.shape), b.dtype) for n, b in module.named_buffers(recurse=False))
        parts.append((name, type(module), settings, own, buffers))
    return tuple(parts)
