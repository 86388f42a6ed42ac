"""One score a layer, by one criterion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["high", "low"]


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
    def sign(self) -> int:
        """1 where high scores count for a layer, -1 where low ones do."""
        return 1 if self.direction == "high" else -1

    @property
    def ranking(self) -> tuple[int, ...]:
        """Layers with a defined score, the first to adapt first; ties go to the lower layer."""
        scored = [(-self.sign * v, i) for i, v in enumerate(self.importance) if v is not None]
        return tuple(i for _, i in sorted(scored))

    def top(self, count: int) -> tuple[int, ...]:
        """The first ``count`` of the ranking, ascending. Where it is shorter, the lowest of the others fill up."""
        rest = [i for i in range(len(self.importance)) if i not in self.ranking]
        return tuple(sorted([*self.ranking, *rest][:count]))

    def beyond(self, threshold: float) -> tuple[int, ...]:
        """The layers that score beyond a threshold, in the criterion's direction, ascending."""
        scored = [(i, v) for i, v in enumerate(self.importance) if v is not None]
        return tuple(i for i, v in scored if self.sign * v > self.sign * threshold)


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


DOMINATED = 0.5  # share of the variance from which on scores follow one dimension


def dominated(top_dimension_share: Sequence[float | None]) -> list[int]:
    """The layers of which a single dimension holds more than half of the variance, so that scores speak of it alone."""
    return [i for i, share in enumerate(top_dimension_share) if share is not None and share > DOMINATED]


def mask_of(layers: Sequence[int], num_layers: int) -> str:
    """A digit a layer, 1 for those that are named."""
    return "".join("1" if i in layers else "0" for i in range(num_layers))


def layers_of(mask: str) -> tuple[int, ...]:
    """The layers that a mask marks with 1."""
    return tuple(i for i, digit in enumerate(mask) if digit == "1")


@dataclass(frozen=True)
class Stop:
    """Where scoring until stable came to an end."""

    decided: bool
    samples: int
    at_most: int
    looks: int
    confidence: float
    needed: int | None = None  # about how many samples would decide it, where these did not
