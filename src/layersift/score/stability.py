"""How sure a ranking is: the same scores on random halves of the sample, computed from what one pass has read.

Halves are drawn without replacement: a sample drawn twice, as the bootstrap does, would look like two samples that
agree perfectly, and spoil the debiased estimators. An estimate from n / 2 of n samples differs from the whole sample's
by about as much as that differs from the truth (the variance of a mean of b out of n drawn without replacement is
(1 / b - 1 / n) of that of one sample, which at b = n / 2 is 1 / n), so the spread over the halves is the uncertainty
of the whole.

Of more than `POOL` samples, the halves are those of that many, drawn at random, and the spread is scaled by the root of
`POOL` / n: the cost does not grow with the sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.special import ndtri, stdtr, stdtrit  # scipy.stats takes a second to import

from layersift.data.examples import Example
from layersift.errors import SelectionError
from layersift.processes import from_all_processes
from layersift.records.selection import LayerScores, Stop
from layersift.score.context import Activations, ScoringContext
from layersift.score.criterion import Criterion, announce_criteria, score_layers

DRAWS = 200
CONFIDENCE = 0.95
FEWEST = 16  # samples, below which halves say nothing
POOL = 512  # of how many samples halves are drawn at most
FIRST_LOOK, GROWTH = 32, 1.5


@dataclass(frozen=True)
class Stability:
    """What the halves of a sample say of its scores."""

    low: tuple[float | None, ...]  # of each layer's score; None where it is undefined
    high: tuple[float | None, ...]
    membership: tuple[float, ...]  # share of the halves in whose top N the layer is
    count: int  # N
    draws: int
    confidence: float
    certainty: tuple[float, ...]  # of each layer, that it is on that side of the edge where the whole sample has it
    samples: int  # of which the halves were drawn

    def decided(self, confidence: float) -> bool:
        """Whether each layer is in the top N, or out of it, with at least this probability.

        The halves have to say so, as far as so many can, and Student's distribution of each layer's distance from the
        edge of the top N, which reaches beyond what a few hundred halves can show.
        """
        shown = min(confidence, 1 - 1 / self.draws)
        return all(max(p, 1 - p) >= shown for p in self.membership) and min(self.certainty) >= confidence

    def needed(self, confidence: float, samples: int) -> int | None:
        """About how many samples would decide the selection, if the scores stay what they are on ``samples``.

        Spreads shrink with the root of their number. None where some layer is exactly at the edge.
        """
        quantile = float(stdtrit(self.samples - 1, min(self.certainty)))
        if not quantile > 0:
            return None
        return math.ceil(samples * max(1.0, (float(ndtri(confidence)) / quantile) ** 2))


def measure_stability(
    criterion: Criterion,
    context: ScoringContext,
    count: int,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
    threshold: float | None = None,
) -> Stability | None:
    """Intervals and memberships of the top ``count`` layers; None where the criterion reads no samples, or too few.

    With a threshold membership and certainty are of the layers beyond it instead. Measures whose value drifts with the
    number of samples have no interval: the truth lies outside of anything that halves show.

    Nothing is forwarded through the model that scoring has not forwarded already.
    """
    n = len(context.examples)
    if not criterion.by_sample or n < FEWEST:
        return None
    whole = score_layers(criterion, context)
    generator = np.random.default_rng(context.seed)
    pool = context if n <= POOL else context.only(np.sort(generator.choice(n, POOL, replace=False)))
    size = len(pool.examples)
    with _one_thread():
        drawn = (np.sort(generator.choice(size, size // 2, replace=False)) for _ in range(draws))
        halves = [score_layers(criterion, pool.of(torch.from_numpy(rows))) for rows in drawn]
    halves = _around(whole, halves, math.sqrt(size / n))
    low, high = zip(*(_interval(halves, layer, confidence) for layer in range(context.num_layers)), strict=True)
    if criterion.drifts_with_samples:
        low = high = (None,) * context.num_layers
    tops = [set(half.top(count) if threshold is None else half.beyond(threshold)) for half in halves]
    membership = tuple(sum(layer in top for top in tops) / draws for layer in range(context.num_layers))
    edge = partial(_distance, count=count, threshold=threshold)
    certainty = tuple(_certainty(whole, halves, layer, edge, size) for layer in range(context.num_layers))
    return Stability(low, high, membership, count, draws, confidence, certainty, size)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small products are no faster on several threads, and far slower where these wait for each other: on
    16 busy cores halves took 40 seconds that two idle cores compute in two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _around(whole: LayerScores, halves: Sequence[LayerScores], scale: float) -> list[LayerScores]:
    """The halves' scores, each layer's moved so that their mean is the whole sample's score, and scaled around it.

    Biased measures are biased otherwise at n / 2 samples than at n, and by more in one layer than in another.
    """
    means: list[float] = []
    for layer in range(len(whole.importance)):
        drawn = [v for half in halves if (v := half.importance[layer]) is not None]
        means.append(float(np.mean(drawn)) if drawn else 0.0)

    def moved(half: LayerScores) -> tuple[float | None, ...]:
        return tuple(
            v if v is None or value is None else value + scale * (v - mean)
            for v, value, mean in zip(half.importance, whole.importance, means, strict=True)
        )

    return [replace(half, importance=moved(half)) for half in halves]


def _interval(halves: Sequence[LayerScores], layer: int, confidence: float) -> tuple[float | None, float | None]:
    drawn = [v for half in halves if (v := half.importance[layer]) is not None]
    if len(drawn) < 2:
        return None, None
    tail = (1 - confidence) / 2
    below, above = np.quantile(drawn, [tail, 1 - tail])
    return float(below), float(above)


def _certainty(
    whole: LayerScores, halves: Sequence[LayerScores], layer: int, edge: Callable[[LayerScores, int], float], pool: int
) -> float:
    """Probability, by Student's distribution, that a layer is on that side of the edge where the whole sample has it.

    What has no score is at the ranking's end.
    """
    distance = edge(whole, layer)
    drawn = [edge(half, layer) for half in halves]
    finite = [d for d in drawn if math.isfinite(d)]
    if not math.isfinite(distance):  # undefined, or all the others are
        return sum((d > 0) == (distance > 0) for d in drawn) / len(drawn)
    spread = float(np.std(finite, ddof=1)) if len(finite) > 1 else 0.0
    if spread == 0:
        return float(distance != 0)
    return float(stdtr(pool - 1, abs(distance) / spread)) * len(finite) / len(drawn)


def _distance(scores: LayerScores, layer: int, count: int, threshold: float | None) -> float:
    """How far a layer's score is inside the top ``count``, from the other layer that bounds it, or beyond a threshold.

    Negative outside.
    """
    values = [-math.inf if v is None else scores.sign * v for v in scores.importance]
    if threshold is not None:
        return values[layer] - scores.sign * threshold
    others = sorted((v for i, v in enumerate(values) if i != layer), reverse=True)
    if count > len(others):
        return math.inf
    edge = others[count - 1]
    return 0.0 if values[layer] == edge else values[layer] - edge


def measure_convergence(
    criterion: Criterion, context: ScoringContext, count: int, draws: int = 30
) -> tuple[tuple[int, float], ...]:
    """How much of the whole sample's top N smaller samples find: pairs of a size and the mean share, up to the whole.

    Smaller samples are drawn from what has been read; empty where the criterion reads no samples, or too few.
    """
    n = len(context.examples)
    if not criterion.by_sample or n < FEWEST:
        return ()
    whole = set(score_layers(criterion, context).top(count))
    generator = np.random.default_rng(context.seed)
    pool = context if n <= 2 * POOL else context.only(np.sort(generator.choice(n, 2 * POOL, replace=False)))
    agreed = []
    for size in (s for s in (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512) if s < n):
        parts = [torch.from_numpy(generator.choice(len(pool.examples), size, replace=False)) for _ in range(draws)]
        tops = [set(score_layers(criterion, pool.of(part)).top(count)) for part in parts]
        agreed.append((size, sum(len(whole & top) for top in tops) / (draws * count)))
    return (*agreed, (n, 1.0))


def sample_sizes(at_most: int) -> list[int]:
    """After how many samples the ranking is looked at: 32, 48, 72, ... and all."""
    sizes, n = [], float(FIRST_LOOK)
    while round(n) < at_most:
        sizes.append(round(n))
        n *= GROWTH
    return [*sizes, at_most]


def until_stable(
    criterion: Criterion, context: ScoringContext, count: int, confidence: float = CONFIDENCE
) -> tuple[ScoringContext, Stability | None, Stop]:
    """Read samples in their order, which is random, until the top ``count`` is decided or none is left.

    Since the ranking is looked at more than once, each look has to be surer: the error that ``confidence`` leaves is
    shared evenly among the looks (Bonferroni). Scores that a few samples make, as heavy-tailed gradients do, are
    nevertheless surer on the first looks than they ought to be.

    Returns:
        the context of the samples that were needed, what halves of them say, and where it stopped.

    Raises:
        SelectionError: the criterion cannot be computed on part of a sample, or there are too few samples.
    """
    if not criterion.by_sample or criterion.needs not in ("forward", "gradients"):
        raise SelectionError(f"{criterion.name} is not a mean over samples, so it cannot be stopped when it is stable")
    every = context.examples
    if len(every) < FIRST_LOOK:
        raise SelectionError(f"until-stable needs at least {FIRST_LOOK} samples, got {len(every)}")
    planned = sample_sizes(len(every))
    sure_enough = 1 - (1 - confidence) / len(planned)
    grown = replace(context, examples=())
    for look, n in enumerate(planned, start=1):
        grown = _read_on(criterion, context, grown, every[len(grown.examples) : n])
        ranking = measure_stability(criterion, grown, count, DRAWS, confidence)
        decided = ranking is not None and ranking.decided(sure_enough)
        if from_all_processes(decided)[0]:  # all stop together, whatever their processors' rounding
            return grown, ranking, Stop(True, n, len(every), look, confidence)
    needed = None if ranking is None else ranking.needed(sure_enough, len(every))
    return grown, ranking, Stop(False, len(every), len(every), len(planned), confidence, needed)


def _read_on(
    criterion: Criterion, whole: ScoringContext, grown: ScoringContext, more: tuple[Example, ...]
) -> ScoringContext:
    """``grown`` with further samples, of which alone anything is forwarded."""
    added = replace(whole, examples=more, activations=Activations())
    announce_criteria([criterion], added)
    if criterion.needs == "gradients":
        added.gradients()
    else:
        added.representations(criterion.position)
    if not grown.examples:
        return added
    return replace(whole, examples=grown.examples + more, activations=grown.activations.joined(added.activations))
