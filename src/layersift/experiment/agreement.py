"""How far criteria agree: by the order of all layers, and by the layers they choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy import stats

from layersift.experiment.scoring import Scored, Scoring
from layersift.records.scores import LayerScores


def rank_correlation(a: LayerScores, b: LayerScores) -> float | None:
    """Spearman's, over the layers that both score, each in its direction; None where one of them is constant there."""
    pairs = [
        (x * a.sign, y * b.sign)
        for x, y in zip(a.importance, b.importance, strict=True)
        if x is not None and y is not None
    ]
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Share of the layers that two selections of equal size have in common."""
    return len(set(a) & set(b)) / max(len(a), 1)


def between_criteria(scoring: Scoring, size: int) -> list[dict[str, object]]:
    """Every pair of criteria with their rank correlation and their overlap."""
    scored = [s for s in scoring.scored if s.size == size]
    return [_pair(a, b) for a in scored for b in scored]


def _pair(a: Scored, b: Scored) -> dict[str, object]:
    return {
        "a": a.scores.criterion,
        "b": b.scores.criterion,
        "correlation": rank_correlation(a.scores, b.scores),
        "overlap": overlap(a.layers, b.layers),
    }


def between_positions(positions: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """A table of how much the selections at different token positions have in common."""
    rows = [["position", *positions]]
    for name, layers in positions.items():
        rows.append([name, *(f"{overlap(layers, other):.0%}" for other in positions.values())])
    return rows
