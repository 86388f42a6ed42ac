"""What nothing beats on both cost and score."""

from __future__ import annotations

from collections.abc import Sequence


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of (cost, score) no other beats: one that costs no more and scores more, or costs less and scores alike."""
    return [
        not any((c <= cost and s > score) or (c < cost and s >= score) for c, s in points) for cost, score in points
    ]
