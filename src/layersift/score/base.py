"""What a criterion is: a rule that gives layers scores, and the facts that its documentation and tests read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from layersift.measures import TokenMeasure
    from layersift.score.subject import Subject

Needs = Literal["nothing", "weights", "forward", "gradients", "training"]
Direction = Literal["high", "low"]

Values = Sequence[float | None]


@dataclass(frozen=True)
class LayerScores:
    """One score a layer; None where it is undefined, with the reason."""

    criterion: str
    importance: tuple[float | None, ...]
    undefined: dict[int, str]  # layer -> why
    top_dimension_share: tuple[float | None, ...]  # of each layer's output: variance in its largest dimension / all
    num_samples: int
    seconds: float
    direction: Direction = "high"  # whether the layers with the highest scores are adapted, or those with the lowest

    @property
    def ranking(self) -> tuple[int, ...]:
        """Layers with a defined score, the first to adapt first; ties go to the lower layer."""
        sign = -1 if self.direction == "high" else 1
        return tuple(i for _, i in sorted((sign * v, i) for i, v in enumerate(self.importance) if v is not None))

    def top(self, count: int) -> tuple[int, ...]:
        """The first ``count`` of the ranking, ascending. Where it is shorter, the lowest of the others fill up."""
        rest = [i for i in range(len(self.importance)) if i not in self.ranking]
        return tuple(sorted([*self.ranking, *rest][:count]))

    def beyond(self, threshold: float) -> tuple[int, ...]:
        """The layers that score beyond a threshold, in the criterion's direction, ascending."""
        scored = [(i, v) for i, v in enumerate(self.importance) if v is not None]
        return tuple(i for i, v in scored if (v > threshold if self.direction == "high" else v < threshold))


def side_by_side(scores: Sequence[LayerScores]) -> LayerScores:
    """The scores of several stacks as those of one, whose layers are counted through."""
    undefined: dict[int, str] = {}
    before = 0
    for part in scores:
        undefined |= {before + layer: why for layer, why in part.undefined.items()}
        before += len(part.importance)
    return LayerScores(
        scores[0].criterion,
        tuple(value for part in scores for value in part.importance),
        undefined,
        tuple(share for part in scores for share in part.top_dimension_share),
        scores[0].num_samples,
        sum(part.seconds for part in scores),
        scores[0].direction,
    )


@dataclass(frozen=True)
class Undefined:
    """In the place of a layer's score: why there is none."""

    why: str


Score = Callable[["Subject"], Sequence["float | Undefined"]]


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
    facts: Mapping[str, str] = field(default_factory=dict)  # further ones, for the documentation

    @property
    def reads_states(self) -> bool:
        """Whether it looks at representations at a position."""
        return self.at is not None


def is_number(value: float | Undefined) -> bool:
    """Whether there is a score."""
    return not isinstance(value, Undefined) and math.isfinite(value)
