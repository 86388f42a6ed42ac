"""A selection that somebody made, instead of a score."""

from __future__ import annotations

from collections.abc import Sequence

from layersift.models.stacks import BlockStack
from layersift.provenance import command, versions
from layersift.records.data import DataRecord
from layersift.records.selection import Selection


def by_hand(
    model: str, revision: str, stack: BlockStack, layers: Sequence[int], data: DataRecord, rule: str
) -> Selection:
    """A selection that no score stands behind."""
    nothing = (None,) * stack.num_layers
    return Selection(
        model=model,
        model_revision=revision,
        tower=stack.tower,
        block_pattern=stack.pattern,
        num_layers=stack.num_layers,
        importance=nothing,
        undefined=dict.fromkeys(range(stack.num_layers), "not scored"),
        ranking=(),
        selected_layers=tuple(layers),
        rule=rule,
        position="",
        metric="",
        num_samples=0,
        seed=0,
        data=data,
        top_dimension_share=nothing,
        seconds={},
        versions=versions(),
        command=command(),
    )
