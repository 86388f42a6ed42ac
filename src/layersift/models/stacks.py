"""Find the stacks of transformer blocks in a model from its structure.

A block is a composite module that holds at least two weight matrices (attention, MLP, state space: whatever mixes);
a stack is a numbered container of such blocks that lies in no other stack. No list of model names or attribute names
is consulted, so a model that was published yesterday is found as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from layersift.compat import name_of
from layersift.config.quantities import layers_told, lists_of, parse_layers
from layersift.errors import ModelError, SelectionError


def is_encoder_decoder(model_or_config: Any) -> bool:
    """Whether an encoder reads and a decoder writes."""
    config = getattr(model_or_config, "config", model_or_config)
    return bool(getattr(config, "is_encoder_decoder", False))


def writes_alone(config: Any) -> bool:
    """Whether transformers knows the architecture as one that writes text, and not as one that fills gaps as well.

    Bloom, MPT, Mamba, RWKV and others mark no module of theirs as causal. Of those that are both (BERT, say), the
    configuration tells.
    """
    kind = getattr(config, "model_type", None)
    # A class that is called a decoder (BertGeneration's) is one where its configuration says so.
    named = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, "Decoder"))
    return not named.endswith("Decoder") and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def unwrap_compiled(model: Any) -> Any:
    """The model inside of torch.compile's wrapper, whose modules are the same and have their own names."""
    return getattr(model, "_orig_mod", model)


def is_linear(module: nn.Module) -> bool:
    """A matrix that maps hidden states, GPT-2's transposed one included, as PEFT counts them for ``all-linear``.

    Routers that are a kind of linear layer in their model's own code (Llama 4's, PhiMoE's) return other things than
    what a matrix gives; no adapter can be added to those.
    """
    kind = type(module)
    router = kind.forward is not nn.Linear.forward and re.search("Router|Gate", kind.__name__) is not None
    return (isinstance(module, nn.Linear) and not router) or kind.__name__ == "Conv1D"


def no_cache(model: nn.Module) -> dict[str, Any]:
    """Keys and values are needed for generation only; keeping them would cost memory that grows with the text."""
    config = getattr(model, "config", None)
    return {"use_cache": False} if hasattr(config, "use_cache") else {}


# Architectures whose table of positions begins behind the padding token's id.
FROM_PADDING = re.compile(r"roberta|camembert|longformer|mpnet|data2vec-text|ibert|luke|lilt|layoutlmv3|^esm$|xmod|mra")


def longest_text(config: Any) -> int | None:
    """How many tokens the model has places for, or None where its configuration sets no limit."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    places = getattr(text, "max_position_embeddings", None)
    if isinstance(places, bool) or not isinstance(places, int) or places < 1:
        return None
    if FROM_PADDING.search(str(getattr(text, "model_type", ""))):
        places -= (getattr(text, "pad_token_id", None) or 0) + 1
    return places if places > 0 else None


def embedded_tokens(model: Any) -> int | None:
    """How many tokens a model has an embedding for; None where it embeds none, or cannot say."""
    with suppress(NotImplementedError, AttributeError):
        embeddings = model.get_input_embeddings()
        if isinstance(embeddings, nn.Embedding):
            return int(embeddings.num_embeddings)
    return None


Tower = Literal["encoder", "decoder", "language", "vision", "audio"]


@dataclass(frozen=True)
class BlockStack:
    """One stack of blocks. Block i (counting from 0, the index PEFT reads) is the module ``path.i``.

    Or several stacks joined: their layers are counted through, those of the first before those of the second.

    Args:
        path: dotted path of the container, relative to the model that was searched; of joined stacks the paths with +
            between.
        tower: ``encoder``, ``decoder``, ``language``, ``vision`` or ``audio``; of joined stacks with + between.
        num_layers: M, the number of blocks.
        block_classes: (M,), class name of each block; hybrid stacks hold several.
        joined: the stacks that were joined; none in a plain stack.

    Examples:
        >>> from layersift import find_stack
        >>> from transformers import AutoModel
        >>> stack = find_stack(AutoModel.from_pretrained("model"))
        >>> stack.num_layers, stack.tower, stack.block_path(0)
        (4, 'encoder', 'encoder.layer.0')
    """

    path: str
    tower: str
    num_layers: int
    block_classes: tuple[str, ...]
    joined: tuple[BlockStack, ...] = ()

    @property
    def parts(self) -> tuple[BlockStack, ...]:
        """The joined stacks, or this one."""
        return self.joined or (self,)

    def place(self, layer: int) -> tuple[BlockStack, int]:
        """The part that holds ``layer``, and its index there."""
        for part in self.parts[:-1]:
            if layer < part.num_layers:
                return part, layer
            layer -= part.num_layers
        return self.parts[-1], layer

    def block_path(self, layer: int) -> str:
        """Exact module path of block ``layer``."""
        part, index = self.place(layer)
        return f"{part.path}.{index}"

    @property
    def pattern(self) -> str:
        """The block paths with ``{}`` in place of the index, as the selection file stores them."""
        return "+".join(f"{part.path}.{{}}" for part in self.parts)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The block modules of ``model`` in order."""
        return [model.get_submodule(self.block_path(i)) for i in range(self.num_layers)]


def _weight_matrices(module: nn.Module) -> int:
    """How many submodules own a weight of two or more dimensions, embeddings and convolutions left out.

    A convolution over a single token of a sequence is a matrix like any other (SqueezeBERT's are). So is a linear
    layer whose weight cannot be seen: quantised into buffers (GPTQ, AWQ, HQQ), or kept in pieces elsewhere (FSDP).
    """

    def counts(m: nn.Module) -> bool:
        if isinstance(m, nn.Conv1d):
            return m.kernel_size == (1,)
        return not isinstance(m, nn.Embedding | nn.Conv2d | nn.Conv3d)

    return sum(_owns_matrix(m) for m in module.modules() if counts(m))


def _owns_matrix(module: nn.Module) -> bool:
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return True
    # Under ZeRO-3 a parameter is empty between its uses, and knows its own shape as ds_shape.
    return any(len(getattr(p, "ds_shape", p.shape)) >= 2 for p in module.parameters(recurse=False))


def _is_stack(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
        return False
    if [name for name, _ in module.named_children()] != [str(i) for i in range(len(module))]:
        return False
    return all(_is_block(child) for child in module)


def _is_block(module: nn.Module) -> bool:
    """A list is no block, since nothing can pass through it: lists of lists (Funnel's) are several stacks."""
    if isinstance(module, nn.ModuleList):
        return False
    return any(True for _ in module.children()) and _weight_matrices(module) >= 2


def _outermost_stacks(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if _is_stack(child):
            yield path, child
        else:
            yield from _outermost_stacks(child, f"{path}.")


_TOWER_OF_INPUT: dict[str, Tower] = {"pixel_values": "vision", "input_features": "audio", "input_values": "audio"}


def _input_kind(model: nn.Module, path: str) -> Tower | Literal["text"]:
    """What the innermost transformers model around ``path`` reads: text, vision or audio."""
    parts = path.split(".")
    around = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
    inputs = [m.main_input_name for m in around if isinstance(getattr(m, "main_input_name", None), str)]
    return _TOWER_OF_INPUT.get(str(inputs[-1]), "text") if inputs else "text"


def _is_causal(stack: nn.Module) -> bool:
    return any(getattr(m, "is_causal", False) is True for m in stack.modules())


def _innermost_config(model: nn.Module, path: str) -> Any:
    """The configuration of the innermost transformers model around ``path``."""
    parts = path.split(".")
    around = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
    return next((m.config for m in reversed(around) if hasattr(getattr(m, "config", None), "model_type")), None)


def _text_tower(model: Any, stack: nn.Module, path: str, beside_others: bool) -> Tower:
    config = getattr(model, "config", None)
    if is_encoder_decoder(model):
        encoder = model.get_encoder()
        return "encoder" if any(m is stack for m in encoder.modules()) else "decoder"
    if beside_others:
        return "language"
    own = _innermost_config(model, path)
    reads_backwards = not (_is_causal(stack) or getattr(config, "is_decoder", False) or writes_alone(own))
    return "encoder" if reads_backwards else "decoder"


def _named(model: nn.Module) -> str:
    name = name_of(model)
    return f"{name} ({type(model).__name__})" if name else type(model).__name__


def find_stacks(model: nn.Module) -> list[BlockStack]:
    """Every stack of transformer blocks in ``model``, in the order in which the model registers them.

    Args:
        model: any transformers model, with or without weights.

    Returns:
        One stack or more, each of M blocks.

    Raises:
        ModelError: the model holds no stack of blocks, or all its layers are one block (ALBERT).

    Examples:
        >>> from layersift import find_stacks
        >>> from transformers import AutoModel
        >>> [(stack.tower, stack.num_layers) for stack in find_stacks(AutoModel.from_pretrained("model"))]
        [('encoder', 4)]
    """
    containers = list(_outermost_stacks(model))
    config: Any = getattr(model, "config", None)
    if 0 < getattr(config, "num_hidden_groups", 0) < getattr(config, "num_hidden_layers", 0):
        raise ModelError(
            f"{type(model).__name__} shares its weights between layers: {config.num_hidden_groups} block runs "
            f"{config.num_hidden_layers} times, so an adapter on one layer is one on all; there is nothing to select"
        )
    if not containers:
        raise ModelError(
            f"{_named(model)} has no transformer blocks: no numbered list of modules with two or more weight "
            "matrices each. layersift chooses among such blocks; give it a transformer."
        )
    kinds = {path: _input_kind(model, path) for path, _ in containers}
    beside_others = len(set(kinds.values())) > 1
    stacks = []
    for path, container in containers:
        kind, blocks = kinds[path], list(container.children())
        tower = _text_tower(model, container, path, beside_others) if kind == "text" else kind
        stacks.append(BlockStack(path, tower, len(blocks), tuple(type(b).__name__ for b in blocks)))
    return stacks


def join(stacks: Sequence[BlockStack]) -> BlockStack:
    """Several stacks as one, or the only one as it is."""
    if len(stacks) == 1:
        return stacks[0]
    return BlockStack(
        path="+".join(s.path for s in stacks),
        tower="+".join(s.tower for s in stacks),
        num_layers=sum(s.num_layers for s in stacks),
        block_classes=tuple(name for s in stacks for name in s.block_classes),
        joined=tuple(stacks),
    )


def choose_stack(stacks: list[BlockStack], tower: str | None = None) -> BlockStack:
    """The stack to select in: the named tower, or else language, encoder, decoder, vision, audio in that order.

    Args:
        tower: one of these, or a stack's own path where a tower has several stacks; ``encoder+decoder`` and the like
            for several together.

    Raises:
        ModelError: no stack, or more than one, belongs to the tower.
    """
    if tower and "+" in tower:
        names = list(dict.fromkeys(tower.split("+")))
        chosen = [choose_stack(stacks, name) for name in names]
        return join([stack for stack in stacks if stack in chosen])  # in the order in which they run
    by_path = [s for s in stacks if s.path == tower]
    if by_path:
        return by_path[0]
    order = [tower] if tower else ["language", "encoder", "decoder", "vision", "audio"]
    for wanted in order:
        matching = [s for s in stacks if s.tower == wanted]
        if len(matching) > 1:
            paths = ", ".join(s.path for s in matching)
            raise ModelError(f"the model has {len(matching)} {wanted} stacks; name one with --tower: {paths}")
        if matching:
            return matching[0]
    have = ", ".join(sorted({s.tower for s in stacks}) + [s.path for s in stacks])
    raise ModelError(f"the model has no {tower} tower; it has: {have}")


def find_stack(model: nn.Module, tower: str | None = None) -> BlockStack:
    """The stack of ``model`` to select in.

    Args:
        model: any transformers model, with or without weights.
        tower: ``encoder``, ``decoder``, ``language``, ``vision`` or ``audio``, a stack's path, or several with +
            between. None takes the first that is there of language, encoder, decoder, vision and audio.

    Returns:
        The stack, of M blocks.

    Raises:
        ModelError: the model has no stack of blocks, or none, or several, of the tower.

    Examples:
        >>> from layersift import find_stack
        >>> from transformers import AutoModel
        >>> find_stack(AutoModel.from_pretrained("model")).pattern
        'encoder.layer.{}'
    """
    return choose_stack(find_stacks(model), tower)


def layers_in(stack: BlockStack, text: str, where: str = "--layers") -> tuple[int, ...]:
    """The layers of a stack, or of several joined ones, that a text names.

    Args:
        stack: found by the towers that the text names (:func:`layersift.config.quantities.towers_of`).

    Raises:
        SelectionError: see :func:`layersift.config.quantities.parse_layers`.
    """
    if "=" not in text:
        return parse_layers(text, stack.num_layers, where)
    lists, layers, begin = lists_of(text, where), [], 0
    for part in stack.parts:
        name = part.path if part.path in lists else part.tower
        layers += [begin + layer for layer in parse_layers(lists.pop(name), part.num_layers, f"{where} {name}:")]
        begin += part.num_layers
    if lists:
        raise SelectionError(f"{where} {text}: {next(iter(lists))} is a stack that is named twice")
    return tuple(layers)


def tell_layers(stack: BlockStack, layers: Sequence[int]) -> str:
    """Layers as ranges; of joined stacks each one's own, behind its tower."""
    if len(stack.parts) == 1:
        return f"{layers_told(layers)}, {len(layers)} of {stack.num_layers}"
    own: dict[str, list[int]] = {part.path: [] for part in stack.parts}
    for part, index in map(stack.place, layers):
        own[part.path].append(index)
    return "; ".join(
        f"{part.tower} {layers_told(own[part.path]) or 'none'}, {len(own[part.path])} of {part.num_layers}"
        for part in stack.parts
    )
