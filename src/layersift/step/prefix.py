"""The frozen prefix: blocks below the first trained one run without a graph, whatever checkpointing does above them.

Nothing below the first adapted block has a gradient, so nothing there needs to be kept or run again. Ordinary autograd
knows that, but gradient checkpointing makes the embeddings' output require a gradient and checkpoints every block, so
that each frozen block runs once more and is backpropagated through for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from layersift.compat import checkpoint_function
from layersift.models.stacks import BlockStack, find_stacks, unwrap_compiled
from layersift.represent.hooks import entering_states, tensors_in, wrap_forward
from layersift.step.activation_cache import ActivationCache, Dropout, dropouts, own_dropouts, without
from layersift.step.shared_prompt import SharedPrompt, share_prompt

log = logging.getLogger(__name__)


@contextmanager
def frozen_prefix(
    model: nn.Module, cache: ActivationCache | None = None, dropout: bool = True, prompt: SharedPrompt | None = None
) -> Iterator[int]:
    """While active, the blocks below the first trained one of ``model`` run without a graph; how many these are.

    The gradients of everything that is trained stay what they are: a block that is called with something which a
    gradient has to go through, or that is trained itself by now, runs as it always does. Call it once adapters are
    attached and checkpointing, if wanted, is on; works for plain and for PEFT models, with checkpointing of either
    kind, and with DDP around the model.

    Args:
        cache: keeps what the prefix gives for each example, and serves it instead of running the prefix. Only for a
            single prefix without dropout: see :func:`prefix_blocks`.
        dropout: whether the prefix, embeddings included, draws dropout while training, as the whole model does.
        prompt: what all rows begin with, which a single prefix computes once.

    Raises:
        ModelError: the model has no stack of blocks.
    """
    stretches, wanted = _frozen_stretches(model), Wanted()
    undo: list[Callable[[], None]] = [] if dropout else [without(prefix_dropouts(model))]
    for frozen, first in stretches:
        undo += [_without_graph(block, wanted) for block in frozen]
        if cache is not None and frozen:
            undo += _cached(frozen, cache)
        if prompt is not None and frozen and len(stretches) == 1:
            undo += share_prompt(prompt, plain_model(model), frozen, cache)
        if frozen and first is not None:
            undo.append(_begins_graph(frozen[-1], first))
    try:
        with wanted.watching(plain_model(model)):
            yield sum(len(frozen) for frozen, _ in stretches)
    finally:
        for restore in reversed(undo):
            restore()


def prefix_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that are frozen below the first trained one, where there is a single such prefix; else none.

    Raises:
        ModelError: the model has no stack of blocks.
    """
    stretches = [frozen for frozen, first in _frozen_stretches(model) if frozen and first is not None]
    return stretches[0] if len(stretches) == 1 else []


def prefix_dropouts(model: nn.Module) -> list[Dropout]:
    """What below the first trained block draws random numbers while training; nothing where no block is frozen."""
    plain = plain_model(model)
    # Whether a layer is left out, and what of the embeddings, is often decided by the module that holds the blocks.
    owners = {stack.path.rpartition(".")[0] for stack in find_stacks(plain)}
    frozen = [block for blocks, _ in _frozen_stretches(model) for block in blocks]
    if not frozen:
        return []
    own = [noise for path in sorted(owners) for noise in own_dropouts(plain.get_submodule(path))]
    return own + dropouts(_below(plain, frozen))


def why_not_kept(model: nn.Module, dropout: bool) -> str | None:
    """Why one output of the frozen prefix for each row of tokens cannot stand for it; None where it can.

    Args:
        dropout: whether the prefix draws dropout while training.

    Raises:
        ModelError: the model has no stack of blocks.
    """
    config = plain_model(model).config
    if not prefix_blocks(model):
        return "there is no frozen block below the first trained one, or there are several such stretches"
    if dropout and (noise := prefix_dropouts(model)):
        return f"{type(noise[0][0]).__name__} draws random numbers there ({noise[0][1]} {noise[0][2]:g})"
    if int(getattr(config.get_text_config(), "num_kv_shared_layers", 0) or 0):
        return "blocks above use keys and values of blocks below"
    asked = ("output_hidden_states", "output_router_logits")
    if any(getattr(config.get_text_config(), name, False) for name in asked):
        return "the outputs of every block are asked for"
    return "the model is an encoder-decoder" if getattr(config, "is_encoder_decoder", False) else None


def _below(plain: nn.Module, frozen: Sequence[nn.Module]) -> list[nn.Module]:
    """The frozen blocks, and what stands outside of the stacks before them."""
    inside = {id(m) for stack in find_stacks(plain) for block in stack.blocks(plain) for m in block.modules()}
    before = []
    for module in plain.modules():
        if module is frozen[0]:
            break
        if id(module) not in inside and not any(True for _ in module.children()):
            before.append(module)
    return [*before, *frozen]


def plain_model(model: Any) -> Any:
    """The transformers model inside of torch.compile's, DDP's and PEFT's wrappers."""
    model = unwrap_compiled(model)
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = unwrap_compiled(model.module)
    return unwrap_compiled(model.get_base_model()) if hasattr(model, "get_base_model") else model


def is_trained(block: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in block.parameters())


def _frozen_stretches(model: nn.Module) -> list[tuple[list[nn.Module], nn.Module | None]]:
    """The frozen blocks at the bottom of each stack, and the first trained one above them."""
    plain = plain_model(model)
    stacks = find_stacks(plain)
    stretches = []
    for stack in stacks:
        if _trained_before(plain, stacks, stack):
            continue  # what enters this stack has a gradient
        blocks = stack.blocks(plain)
        first = next((i for i, block in enumerate(blocks) if is_trained(block)), None)
        if first is None and stack is not stacks[-1]:
            continue  # a tower without adapters, whose outputs others may read: autograd skips it by itself
        count = len(blocks) if first is None else first
        stretches.append((blocks[:count], None if first is None else blocks[first]))
    return stretches


def _trained_before(model: nn.Module, stacks: Sequence[BlockStack], stack: BlockStack) -> bool:
    """Whether anything registered before the stack is trained: embeddings, a projector, another tower's blocks."""
    for name, parameter in model.named_parameters():
        if name.startswith(f"{stack.path}."):
            return False
        if parameter.requires_grad:
            return True
    return False


def _without_graph(block: nn.Module, wanted: Wanted) -> Callable[[], None]:
    """Make a block's forward pass build no graph and keep no checkpoint; what undoes it."""
    checkpointing = getattr(block, "gradient_checkpointing", None)
    told = False

    def without_graph(forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        nonlocal told
        if torch.is_grad_enabled() and (is_trained(block) or wanted.behind((args, kwargs))):
            if not told:
                log.info("%s runs with a graph: what enters it, or it itself, has a gradient", type(block).__name__)
                told = True
                if checkpointing:
                    block.gradient_checkpointing = checkpointing
            return forward(*args, **kwargs)
        with torch.no_grad():
            return forward(*args, **kwargs)

    unwrap = wrap_forward(block, without_graph)
    if checkpointing:
        block.gradient_checkpointing = False  # type: ignore[assignment]  # a flag, not a module

    def restore() -> None:
        unwrap()
        if checkpointing:
            block.gradient_checkpointing = checkpointing

    return restore


def _cached(blocks: Sequence[nn.Module], cache: ActivationCache) -> list[Callable[[], None]]:
    """Let a prefix be skipped for batches that the cache holds, and kept for those that it does not."""

    def wrap(place: int, block: nn.Module) -> Callable[[], None]:
        depth = place + 1

        def cached(forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            shallowest = cache.shallowest
            if depth <= shallowest:  # the blocks below hand on what enters them
                states = entering_states(args, kwargs)
                return cache.serve(states) if depth == shallowest else cache.hand_on(states)
            output = forward(*args, **kwargs)
            if shallowest:
                output = cache.put_deeper(output, depth)
            if depth == len(blocks):
                cache.keep(output, depth)
            return output

        return wrap_forward(block, cached)

    return [wrap(place, block) for place, block in enumerate(blocks)]


def _begins_graph(last: nn.Module, first: nn.Module) -> Callable[[], None]:
    """Let reentrant checkpointing, which looks for an input with a gradient, find one at the first trained block.

    The last frozen block hands it on: a hook of the trained one would come too late where the checkpoint is around its
    hooks, as in transformers 5.0 to 5.22.
    """

    def handing_on(forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if not (torch.is_grad_enabled() and _checkpoints_reentrantly(first)):
            return output
        states, *rest = output if isinstance(output, tuple) else (output,)
        if torch.is_tensor(states) and not states.requires_grad:  # else the graph has begun below
            states = states.detach().requires_grad_()
        return (states, *rest) if isinstance(output, tuple) else states

    return wrap_forward(last, handing_on)


def _checkpoints_reentrantly(block: nn.Module) -> bool:
    checkpoint = checkpoint_function(block)
    reentrant = getattr(checkpoint, "keywords", {}).get("use_reentrant", True)
    return bool(getattr(block, "gradient_checkpointing", False) and reentrant)


class Wanted:
    """The inputs of a model's running forward pass that want a gradient, such as ``inputs_embeds``."""

    def __init__(self) -> None:
        self._inputs: set[int] = set()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While active, each forward pass of ``model`` says what its inputs want."""

        def hook(module: nn.Module, *given: Any) -> None:
            self._inputs = {id(t) for t in tensors_in(given) if t.requires_grad}

        handle = model.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def behind(self, value: Any) -> bool:
        """Whether a gradient has to go through ``value``, what a block is called with, to something that is trained."""
        return any(self._reaches(tensor) for tensor in tensors_in(value) if tensor.requires_grad)

    def _is_trained(self, leaf: torch.Tensor) -> bool:
        return isinstance(leaf, nn.Parameter) or id(leaf) in self._inputs

    def _reaches(self, tensor: torch.Tensor) -> bool:
        if tensor.grad_fn is None or id(tensor) in self._inputs:
            return self._is_trained(tensor)
        seen, waiting = {tensor.grad_fn}, [tensor.grad_fn]
        while waiting:
            node = waiting.pop()
            if "Checkpoint" in type(node).__name__:  # reentrant: what runs inside is not in the graph yet
                return True
            leaf = getattr(node, "variable", None)
            if leaf is not None and self._is_trained(leaf):
                return True
            following = {n for n, _ in node.next_functions if n is not None} - seen
            seen |= following
            waiting += following
        return False
