"""Looks at a training through rows that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from layersift.config.data import Columns
from layersift.config.watch import WatchSettings
from layersift.evaluation.metrics import METRICS, TOKEN_BUDGET, evaluate
from layersift.load.data import read_table
from layersift.load.encode import Encoder
from layersift.load.examples import Example
from layersift.load.task import encode_sample
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
    columns: Columns,
    encoder: Encoder,
    pad_id: int,
    most_tokens: int,
    tell: Callable[[str], None] | None = None,
) -> Watch:
    """What the settings ask for, on rows with the training's columns.

    Raises:
        DataError: they cannot be read, or hold labels that the training rows lack.
    """
    if settings.eval_data is None:
        return Watch(report_to=settings.trackers, tell=tell)
    table = read_table(settings.eval_data, columns, encoder.kind, settings.eval_split)
    encoded = encode_sample(table, encoder, None, 0)
    if encoded.notice and tell is not None:
        tell(f"{table.source}: {encoded.notice}")
    metric = METRICS[encoder.kind][0]
    return Watch(
        judge=judge_of(encoder, encoded.examples, pad_id, most_tokens),
        metric=metric,
        patience=settings.patience,
        higher_is_better=unit_of(metric).higher_is_better,
        report_to=settings.trackers,
        tell=tell,
    )
