"""From a sample and the settings to what criteria look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from layersift.config.select import BOTTOM, SelectSettings
from layersift.errors import SelectionError
from layersift.load.blocks import BlockStack
from layersift.load.models import LoadedModel
from layersift.represent.positions import get_position
from layersift.score.criteria.eva import EVA
from layersift.score.criteria.pilot import PILOT
from layersift.score.criterion import Criterion
from layersift.score.subject import Subject
from layersift.score.table import Named, find_criterion
from layersift.select.published import PUBLISHED, published_position
from layersift.select.sample import Sample, default_position

if TYPE_CHECKING:
    from peft import PeftConfig


def criterion_of(settings: SelectSettings, given: Named | None = None) -> Criterion:
    """The criterion that the settings name, or the one that was ``given``; the published one where that is asked for.

    Raises:
        LayersiftError: no such criterion or position; ``given`` beside the published selection.
    """
    if settings.position is not None:
        get_position(settings.position)
    if settings.compat == "paper":
        if given is not None:
            raise SelectionError("compat 'paper' has a criterion of its own; leave criterion away")
        return PUBLISHED
    return find_criterion(settings.criterion if given is None else given)


def require_fitting(criterion: Criterion, settings: SelectSettings, stack: BlockStack) -> None:
    """Refuse criteria whose scores do not mean what would be made of them.

    Raises:
        SelectionError: one of those.
    """
    if settings.compat == "paper" and stack.joined:
        raise SelectionError("--compat paper knows one stack of blocks; name one tower")
    if stack.joined and (criterion.needs in ("nothing", "weights", "training") or criterion is EVA):
        raise SelectionError(f"{criterion.name} ranks the layers of one stack of blocks; name one tower")
    open_count = settings.budget_params is not None or settings.threshold is not None or settings.objective is not None
    if criterion.name.removeprefix(BOTTOM) == PILOT.name and open_count:
        raise SelectionError("pilot tries subsets of one size; give it a number of layers: ratio or top-n")


def subjects_of(
    loaded: LoadedModel,
    stack: BlockStack,
    sample: Sample,
    settings: SelectSettings,
    *,
    adapter: PeftConfig | None = None,
    count: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Subject]:
    """A subject for each part of ``stack``, of whose layers ``count`` are going to be chosen, or half."""
    return [
        Subject(
            model=loaded.model,
            stack=part,
            examples=sample.examples,
            kind=sample.kind,
            position=settings.position
            or (published_position(part) if settings.compat == "paper" else default_position(sample.kind, part)),
            pad_id=loaded.pad_id,
            seed=settings.seed,
            count=min(part.num_layers, count or max(1, part.num_layers // 2)),
            adapter=adapter,
            probe_steps=settings.probe_steps,
            progress=progress if part is stack.parts[-1] else None,
            post_norm_last=settings.compat == "paper",
        )
        for part in stack.parts
    ]
