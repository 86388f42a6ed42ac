"""Looks at a training through rows that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from layersift.config.train import WatchSettings
from layersift.data.encode import Encoder
from layersift.data.examples import Example, digest_of
from layersift.evaluation.metrics import METRICS, TOKEN_BUDGET, evaluate
from layersift.records.result import Look
from layersift.statistics.verdicts import unit_of
from layersift.training.watch import Judge, Watch


def judge_of(encoder: Encoder, examples: Sequence[Example], pad_id: int, most_tokens: int) -> Judge:
    """Scores a model on examples, in batches of no more tokens than the training's."""

    def look(model: Any, share: float) -> Look:
        found = evaluate(model, encoder, examples, pad_id, most_tokens=min(TOKEN_BUDGET, most_tokens))
        outcomes = tuple(round(outcome, 6) for outcome in found.outcomes)
        return Look(share, next(iter(found.metrics.values())), outcomes, found.weights, found.never_predicted)

    return look


def watch_of(
    settings: WatchSettings,
    examples: Sequence[Example],
    encoder: Encoder,
    pad_id: int,
    most_tokens: int,
    tell: Callable[[str], None] | None = None,
) -> Watch:
    """What the settings ask for.

    Args:
        examples: to score the model on while it trains; none: it is not.
    """
    if not examples:
        return Watch(report_to=settings.trackers, tell=tell)
    metric = METRICS[encoder.kind][0]
    return Watch(
        judge=judge_of(encoder, examples, pad_id, most_tokens),
        metric=metric,
        patience=settings.patience,
        higher_is_better=unit_of(metric).higher_is_better,
        report_to=settings.trackers,
        tell=tell,
        rows=digest_of(examples),
    )
