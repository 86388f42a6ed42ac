"""Look at the hidden states that blocks exchange while a model runs; block by block where memory is short."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from layersift.compat import offloading_hook
from layersift.errors import ModelError
from layersift.models.load import keep_weights_packed
from layersift.models.source import require_finite_weights


class Done(Exception):  # noqa: N818 - not an error: it ends a forward pass that has nothing left to give
    """Raised by the last hook of a pass."""


def entering_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states (B, T, d) that a block was called with.

    Raises:
        ModelError: there are none.
    """
    for value in (kwargs.get("hidden_states"), *args, *kwargs.values()):
        if torch.is_tensor(value) and value.is_floating_point() and value.ndim == 3:
            return value
    raise ModelError("the first block received no hidden states of shape (batch, tokens, width)")


def leaving_states(output: Any) -> torch.Tensor:
    """The hidden states (B, T, d) that a block returned.

    Raises:
        ModelError: there are none.
    """
    first = output[0] if isinstance(output, tuple | list) else output
    if not torch.is_tensor(first) or first.ndim != 3:
        raise ModelError("a block returned no hidden states of shape (batch, tokens, width)")
    return first


def streams_of(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], torch.Tensor]:
    """How to read (B, T, d) from what this block gets and gives.

    Where a block works on K streams of hidden states at once, the representation of a token is all of them side by
    side, (B, T, K * d): Gemma 3n's predictions come as (K, B, T, d), hyper-connections as (B, T, K, d).
    """
    entering = kwargs.get("hidden_states", next(iter(args), None))
    if not torch.is_tensor(entering) or entering.ndim != 4:
        return leaving_states
    leading = hasattr(getattr(block, "config", None), "altup_num_inputs")

    def joined(output: Any) -> torch.Tensor:
        states = output[0] if isinstance(output, tuple | list) else output
        if not torch.is_tensor(states) or states.ndim != 4:
            raise ModelError("a block that works on several streams of hidden states returned none of them")
        return (states.permute(1, 2, 0, 3) if leading else states).flatten(2)

    return joined


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


@dataclass(frozen=True)
class Form:
    """How blocks hand on hidden states, for those that stand in for them."""

    length: int = 0  # of the tuple whose first part they are, the others being None; 0: they come bare

    @classmethod
    def of(cls, output: Any) -> Form | None:
        """The form of a block's output; None where it holds more than hidden states (B, T, d), or several streams."""
        first = output[0] if isinstance(output, tuple | list) else output
        if not torch.is_tensor(first) or first.ndim != 3:
            return None
        if not isinstance(output, tuple | list):
            return cls()
        return cls(len(output)) if all(part is None for part in output[1:]) else None

    def put(self, states: torch.Tensor) -> Any:
        """States in this form."""
        return (states, *[None] * (self.length - 1)) if self.length else states


def wrap_forward(block: nn.Module, around: Callable[[Callable[..., Any], Any, Any], Any]) -> Callable[[], None]:
    """Call ``around(forward, args, kwargs)`` in place of a block's own forward; what is returned undoes it.

    Wrappers of one block are undone in reverse order.
    """
    forward, own = block.forward, vars(block).get("forward")

    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(forward, args, kwargs)

    def restore() -> None:
        if own is None:
            del block.forward
        else:
            block.forward = own

    block.forward = wrapped
    return restore


@contextmanager
def read_blocks(blocks: Sequence[nn.Module], read: Callable[[int, torch.Tensor], None], stop: bool) -> Iterator[None]:
    """While active, a forward pass calls ``read(i, R_i)`` and, if ``stop``, ends behind the last block with `Done`.

    All hooks are removed on the way out, also after an exception.
    """
    states_in: Callable[[Any], torch.Tensor] = leaving_states

    def before_first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal states_in
        states_in = streams_of(module, args, kwargs)
        read(
            0,
            entering_states(args, kwargs)
            if states_in is leaving_states
            else states_in(kwargs.get("hidden_states", args)),
        )

    def after(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            read(layer + 1, states_in(output))
            if stop and layer == len(blocks) - 1:
                raise Done

        return hook

    handles = [blocks[0].register_forward_pre_hook(before_first, with_kwargs=True)]
    handles += [block.register_forward_hook(after(i)) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off and no graph, and weights as they are; every module's own mode is restored."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), keep_weights_packed(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def execution_device(block: nn.Module) -> torch.device:
    """Where a block computes. Weights that accelerate keeps elsewhere until then are on the meta device."""
    device = next(p.device for p in block.parameters() if p.is_floating_point())
    if device.type != "meta":
        return device
    hooks = map(offloading_hook, block.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((place for place in places if place is not None), "cpu"))


Read = Callable[[int, int, torch.Tensor], None]  # of a batch, at a place: R_place


def is_offloaded(block: nn.Module) -> bool:
    """Whether a block's weights are loaded only while it runs."""
    return any(p.device.type == "meta" for p in block.parameters())


def pass_by_blocks(
    backbone: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Mapping[str, Any]], read: Read, stop: bool
) -> list[Any]:
    """Forward all batches through one block after the other, calling ``read(batch, i, R_i)``.

    Args:
        batches: model inputs.
        stop: end behind the last block; else the rest of the model runs, once a batch.

    Returns:
        the model's outputs, one a batch; nothing where the pass ends behind the last block.

    Raises:
        ModelError: a block hands on more than hidden states, or holds weights that are not finite.
    """
    names = {module: name for name, module in backbone.named_modules()}
    walk = _Walk(backbone, blocks, read)
    outputs: list[Any] = []
    for place, block in enumerate(blocks):
        last = place == len(blocks) - 1
        with hold_weights(block):
            require_finite_weights(block, "the model", f"{names[block]}.")
            for number, inputs in enumerate(batches):
                output = walk.through(place, number, inputs, stop or not last)
                if output is not None:
                    outputs.append(output)
    return outputs


@dataclass
class _Walk:
    """Where the batches are between two blocks."""

    backbone: nn.Module
    blocks: Sequence[nn.Module]
    read: Read
    entering: list[torch.Tensor] = field(default_factory=list)  # of each batch, what the next block gets
    forms: list[Form] = field(default_factory=list)  # of each block so far, how it hands on states

    def through(self, place: int, number: int, inputs: Mapping[str, Any], stop: bool) -> Any:
        """Batch ``number`` through block ``place``, with everything around the blocks.

        The last block below gives what it gave before: whatever the model does between the others must not be done
        again.
        """

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if place == 0:
                self.read(number, 0, entering_states(args, kwargs))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._take(place, number, module, output)
            if stop:
                raise Done

        with ExitStack() as undo:
            for below in range(place):
                states = self.entering[number] if below == place - 1 else None
                undo.callback(_skip_computing(self.blocks[below], states, self.forms[below]))
            undo.callback(self.blocks[place].register_forward_pre_hook(before, with_kwargs=True).remove)
            undo.callback(self.blocks[place].register_forward_hook(after).remove)
            with suppress(Done):
                return self.backbone(**inputs)
        return None

    def _take(self, place: int, number: int, module: nn.Module, output: Any) -> None:
        """Read what the block gave for a batch, and keep it for the next one."""
        form = Form.of(output)
        if form is None:
            name = type(module).__name__
            raise ModelError(f"{name} hands on more than hidden states; it cannot be read block by block")
        hidden = leaving_states(output)
        self.read(number, place + 1, hidden)
        if number == len(self.entering):
            self.entering.append(hidden.cpu())
        else:
            self.entering[number] = hidden.cpu()
        if len(self.forms) == place:
            self.forms.append(form)


def _skip_computing(block: nn.Module, states: torch.Tensor | None, form: Form) -> Callable[[], None]:
    """Let the block compute nothing and return ``states``, or what enters it; what is returned undoes it."""

    def around(forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        entered = entering_states(args, kwargs)
        return form.put(entered if states is None else states.to(entered.device))

    return wrap_forward(block, around)


@contextmanager
def hold_weights(block: nn.Module) -> Iterator[None]:
    """Load a block's weights for as long as this lasts, instead of once a call."""
    hooks = [(module, offloading_hook(module)) for module in block.modules()]
    loading = [(module, hook) for module, hook in hooks if hook is not None and getattr(hook, "offload", False)]
    begun = []
    try:
        for module, hook in loading:
            begun.append((module, hook))
            hook.pre_forward(module)
            hook.offload = False
        yield
    finally:
        for module, hook in begun:
            hook.offload = True
            hook.post_forward(module, None)
