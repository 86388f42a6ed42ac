"""The record of a choice: what was chosen of what, by which scores, on which data."""

from __future__ import annotations

from typing import Any

from layersift.config.select import SelectSettings
from layersift.load.blocks import BlockStack
from layersift.load.models import LoadedModel
from layersift.provenance import command, versions
from layersift.records.scores import LayerScores
from layersift.records.selection import Selection
from layersift.select.layers import Chosen
from layersift.select.sample import Sample


def recorded(
    loaded: LoadedModel,
    stack: BlockStack,
    sample: Sample,
    settings: SelectSettings,
    scores: LayerScores,
    chosen: Chosen,
    position: str = "",
    **more: Any,
) -> Selection:
    """The selection of ``chosen`` by ``scores``; ``more`` are further fields of it."""
    return Selection(
        model=loaded.name,
        model_revision=loaded.revision,
        tower=stack.tower,
        block_pattern=stack.pattern,
        num_layers=stack.num_layers,
        importance=scores.importance,
        undefined=scores.undefined,
        ranking=scores.ranking,
        selected_layers=chosen.layers,
        rule=chosen.rule,
        position=position,
        metric=scores.criterion,
        num_samples=scores.num_samples,
        seed=settings.seed,
        data=sample.data,
        top_dimension_share=scores.top_dimension_share,
        versions=versions(),
        command=command(),
        **more,
    )
