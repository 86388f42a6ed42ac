"""Pass over a model that is larger than memory, one block at a time.

Where accelerate keeps a block's weights on disk, or in another memory than where they are used, an ordinary pass loads
every block again for every batch. Here a block is loaded once and sees all batches before the next one is loaded;
between blocks the states of all samples are kept, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from layersift.compat import offloading_hook
from layersift.errors import ModelError
from layersift.models.checkpoint import require_finite_weights
from layersift.represent.hooks import Done, Form, entering_states, leaving_states, wrap_forward

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
