"""What a criterion is: a rule that gives layers scores. The scores of every layer by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from layersift.errors import ModelError, SelectionError
from layersift.measures import TokenMeasure
from layersift.records.selection import Direction, LayerScores
from layersift.represent.hooks import is_offloaded
from layersift.score.context import ScoringContext, top_dimension_share
from layersift.score.probe import Undefined, is_number

Needs = Literal["nothing", "weights", "forward", "gradients", "training"]


Score = Callable[[ScoringContext], Sequence[float | Undefined]]


@dataclass(frozen=True)
class Criterion:
    """A rule that gives every layer of a stack a score.

    ``score`` takes the context: model, sample, and what passes over them have read. It returns one number a layer, or
    :class:`Undefined` where it has none.
    """

    name: str
    summary: str
    needs: Needs
    direction: Direction
    score: Score
    cost: str  # in forward passes over the sample, and what comes on top
    source: str
    position: str | None = None  # the tokens it reads; None: the default of the task, or it reads none
    at: Callable[[str], Criterion] | None = None  # the same rule at another position
    measures: tuple[TokenMeasure, ...] = ()  # what it reads token by token in the forward pass
    by_sample: bool = True  # whether it can be computed again on part of what was read, which gives intervals
    drifts_with_samples: bool = False  # see :class:`layersift.measures.base.Measure`; there is no interval then

    @property
    def reads_states(self) -> bool:
        """Whether it looks at representations at a position."""
        return self.at is not None


def announce_criteria(criteria: Iterable[Criterion], context: ScoringContext) -> None:
    """Say which criteria are going to look at a context, so that one pass reads for all of them."""
    for criterion in criteria:
        position = [criterion.position or context.position] if criterion.reads_states else []
        context.activations.announce(position, criterion.measures)


def score_layers(criterion: Criterion, context: ScoringContext) -> LayerScores:
    """The scores of every layer by a criterion.

    ``seconds`` are those of the criterion as if it had been asked alone: its own, and the pass that it shares.

    Raises:
        ModelError: the criterion needs the model in memory, and it is not there.
        SelectionError: the criterion returned something else than a number or nothing for each layer.
    """
    if criterion.needs in ("gradients", "weights", "training") and _is_offloaded(context):
        raise ModelError(f"{criterion.name} needs the model in memory; its blocks are loaded only while they run")
    announce_criteria([criterion], context)
    activations, seconds = context.activations, 0.0
    shares: tuple[float | None, ...] = (None,) * context.num_layers
    if criterion.needs == "forward" and criterion.reads_states:
        states = activations.representations(context, criterion.position or context.position).states
        if context.samples is None:
            shares = tuple(top_dimension_share(state) for state in states[1:])
        seconds = activations.forward_seconds
    elif criterion.needs == "gradients" and criterion.by_sample:
        activations.gradients(context)
        seconds = activations.gradient_seconds
    started = time.perf_counter()
    values = list(criterion.score(context))
    seconds += time.perf_counter() - started
    if len(values) != context.num_layers:
        raise SelectionError(f"{criterion.name} gave {len(values)} scores for {context.num_layers} layers")
    return LayerScores(
        criterion=criterion.name,
        importance=tuple(float(v) if is_number(v) else None for v in values),  # type: ignore[arg-type]
        undefined={
            layer: value.why if isinstance(value, Undefined) else f"{criterion.name} is not a number here"
            for layer, value in enumerate(values)
            if not is_number(value)
        },
        top_dimension_share=shares,
        num_samples=context.num_samples,
        seconds=seconds,
        direction=criterion.direction,
    )


def _is_offloaded(context: ScoringContext) -> bool:
    return any(map(is_offloaded, context.stack.blocks(context.model)))
