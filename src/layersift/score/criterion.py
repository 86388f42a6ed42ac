"""What a criterion is: a rule that gives layers scores, and the facts that its documentation and tests read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from layersift.measures import TokenMeasure
from layersift.records.scores import Direction
from layersift.score.subject import Subject
from layersift.score.undefined import Undefined

Needs = Literal["nothing", "weights", "forward", "gradients", "training"]


Score = Callable[[Subject], Sequence[float | Undefined]]


@dataclass(frozen=True)
class Criterion:
    """A rule that gives every layer of a stack a score.

    ``score`` takes the subject: model, sample, and what passes over them have read. It returns one number a layer, or
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
