"""A model of which each part has been measured: its blocks, and what is around them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import nn

from layersift.adapt.store import head_parameters
from layersift.models.stacks import BlockStack, find_stacks
from layersift.plan.block import Role
from layersift.plan.blocks import MeasuredBlocks
from layersift.plan.frame import EMBEDDINGS, Frame, measure_frame
from layersift.plan.training import LABELLED, StepSize


@dataclass(frozen=True)
class _Part:
    """One of the joined stacks, its layers counted through all of them."""

    layers: range
    below: tuple[range, ...]  # layers of other parts that the model registers before it
    head_below: bool
    last: bool  # of all stacks of the model


class MeasuredModel:
    """What the parts of a model cost; each is measured when it is first asked for.

    Args:
        model: with or without weights; left as it was.
        stack: of the blocks that are chosen among.
    """

    def __init__(self, model: nn.Module, stack: BlockStack) -> None:
        self.blocks = MeasuredBlocks(model, stack)
        plain = self.blocks.plain.model
        heads = set(head_parameters(plain))
        self.head = [parameter for name, parameter in plain.named_parameters() if name in heads]
        self._parts = list(_parts(plain, stack, heads))
        self._frames: dict[tuple[StepSize, tuple[bool, ...]], Frame] = {}

    def frame(self, size: StepSize, graphs: tuple[bool, ...]) -> Frame:
        """What is around the blocks, some of which have a graph.

        Raises:
            ModelError: the model does not run without weights.
        """
        whole = self._frame(size, (True,) * len(graphs))
        # Where nothing is computed between blocks, it does not matter which of them have a graph above the first.
        if all(len({whole.forward_flops[i] for i in part.layers}) == 1 for part in self._parts):
            alike = list(graphs)
            for part in self._parts:
                for layer in part.layers[1:] if any(graphs[i] for i in part.layers) else ():
                    alike[layer] = True
            graphs = tuple(alike)
        return self._frame(size, graphs)

    def _frame(self, size: StepSize, graphs: tuple[bool, ...]) -> Frame:
        key = (size, graphs)
        if key not in self._frames:
            self._frames[key] = measure_frame(self.blocks, size, graphs)
        return self._frames[key]

    def roles(self, layers: Collection[int], trained: Collection[int], size: StepSize, skipping: bool) -> list[Role]:
        """How each block takes part in a step.

        Args:
            layers: that carry adapters.
            trained: that are trained at this step.
            skipping: whether blocks without adapters hand their gradients past themselves.

        Raises:
            ModelError: the model does not run without weights.
        """
        count = len(self.blocks.plain.modules)
        wiring = self._frame(size, (True,) * count).wiring
        layers, trained = set(layers), set(trained)
        frozen = {layer for part in self._parts for layer in self._prefix(part, trained, size)}
        roles: list[Role] = []
        for place in range(count):
            entering = tuple(
                at
                for at, sources in wiring[place].items()
                if any(source == EMBEDDINGS or roles[source].graph for source in sources)
            )
            if place in frozen or not (entering or place in trained):
                roles.append(NO_GRAPH)
            else:
                roles.append(Role(True, place in trained, entering, skipping and place not in layers))
        return roles

    def _prefix(self, part: _Part, trained: set[int], size: StepSize) -> range:
        """The blocks of a part that run without a graph: see :func:`layersift.step.prefix.frozen_prefix`."""
        if (part.head_below and size.kind in LABELLED) or any(i in trained for below in part.below for i in below):
            return range(0)
        first = next((layer for layer in part.layers if layer in trained), None)
        if first is None:
            return part.layers if part.last else range(0)
        return range(part.layers.start, first)


NO_GRAPH = Role(graph=False)


def _parts(model: nn.Module, stack: BlockStack, heads: Collection[str]) -> Iterator[_Part]:
    order = {name: place for place, (name, _) in enumerate(model.named_parameters())}

    def begins(part: BlockStack) -> int:
        return min((place for name, place in order.items() if name.startswith(f"{part.path}.")), default=len(order))

    ranges, start = [], 0
    for part in stack.parts:
        ranges.append(range(start, start + part.num_layers))
        start += part.num_layers
    for part, layers in zip(stack.parts, ranges, strict=True):
        below = tuple(r for other, r in zip(stack.parts, ranges, strict=True) if begins(other) < begins(part))
        head_below = any(order[name] < begins(part) for name in heads)
        yield _Part(layers, below, head_below, find_stacks(model)[-1].path == part.path)
