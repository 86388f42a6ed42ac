"""Rules that look at nothing: what every other rule has to beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layersift.score.criterion import Criterion


def _plain(name: str, summary: str, place: Callable[[int, int], float]) -> Criterion:
    """A rule that scores layer i of M by ``place(i, M)``."""
    return Criterion(
        name=name,
        summary=summary,
        needs="nothing",
        direction="high",
        score=lambda context: [place(i, context.num_layers) for i in range(context.num_layers)],
        cost="none",
        source="plain",
        by_sample=False,
    )


FIRST = _plain("first", "the first layers", lambda i, m: -i)
LAST = _plain("last", "the last layers", lambda i, m: i)
MIDDLE = _plain("middle", "the layers in the middle", lambda i, m: -abs(i - m / 2 + 0.25))
ALTERNATE = _plain(
    "alternate",
    "every other layer, counted from the last; then the others, from the last",
    lambda i, m: i + m * (1 - (m - 1 - i) % 2),
)
FIRST_AND_LAST = _plain(
    "first-and-last",
    "the first ones and the very last, which the paper's decoder masks nearly are",
    lambda i, m: m if i == m - 1 else -i,
)
NAMES = tuple(rule.name for rule in (FIRST, LAST, MIDDLE, ALTERNATE, FIRST_AND_LAST))
RANDOM = Criterion(
    name="random",
    summary="layers drawn by the seed",
    needs="nothing",
    direction="high",
    score=lambda context: np.random.default_rng(context.seed).permutation(context.num_layers).tolist(),
    cost="none",
    source="plain",
    by_sample=False,
)
