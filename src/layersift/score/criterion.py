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
    """A rule that gives every layer of a stack a score. ``source`` names the paper of each criterion of ours.

    Args:
        name: as in ``layersift criteria``.
        summary: one line that says what it measures.
        needs: ``nothing``, ``weights``, ``forward``, ``gradients`` or ``training``.
        direction: whether the layers with ``high`` or with ``low`` scores are adapted.
        score: takes a :class:`ScoringContext` and returns (M,) numbers, :class:`Undefined` where a layer has none.
        cost: in forward passes over the sample, in words.
        source: the paper, or who thought of it.
        position: the token position that it reads; None: the task's default, or it reads none.
        at: gives the same rule at another position; None where it reads none.
        measures: what it reads token by token in the forward pass.
        by_sample: whether it can be computed again on part of the sample, which gives intervals.
        drifts_with_samples: whether its bias depends on the number of samples; then there are no intervals.

    Examples:
        >>> from layersift import CRITERIA
        >>> fisher = CRITERIA["fisher"]
        >>> fisher.needs, fisher.direction, fisher.cost
        ('gradients', 'high', '1 forward and 1 backward pass')
    """

    name: str
    summary: str
    needs: Needs
    direction: Direction
    score: Score
    cost: str
    source: str
    position: str | None = None
    at: Callable[[str], Criterion] | None = None
    measures: tuple[TokenMeasure, ...] = ()
    by_sample: bool = True
    drifts_with_samples: bool = False

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

    Args:
        criterion: as :func:`find_criterion` gives it.
        context: model and sample.

    Returns:
        (M,) scores.

    Raises:
        ModelError: the criterion needs the model in memory, and it is not there.
        SelectionError: the criterion returned something else than a number or nothing for each layer.

    Examples:
        >>> import json
        >>> from layersift import find_criterion, score_layers, select_layers
        >>> from transformers import AutoModel, AutoTokenizer
        >>> def sum_of_two(context):
        ...     scores = [score_layers(find_criterion(name), context).importance for name in ("cka", "cosine")]
        ...     return [cka + cosine for cka, cosine in zip(*scores)]
        ...
        >>> model, tokenizer = AutoModel.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
        >>> rows = [json.loads(line) for line in open("rows.jsonl")]
        >>> print(select_layers(model, rows, tokenizer, criterion=sum_of_two))
        0101  (top 2 of 4; sum_of_two, 24 samples)
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
