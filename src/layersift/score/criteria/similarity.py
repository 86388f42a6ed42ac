"""Criteria that compare what enters a layer with what leaves it, by any measure and at any token position."""

from __future__ import annotations

from functools import partial

import torch

from layersift.measures import Measure, TokenMeasure
from layersift.score.context import ScoringContext, importances
from layersift.score.criterion import Criterion
from layersift.score.probe import Undefined


def similarity_criterion(measure: Measure, position: str | None = None) -> Criterion:
    """The criterion 1 - ``measure`` at a position."""

    def score(context: ScoringContext) -> list[float | Undefined]:
        return importances(context.prepared(measure, position), measure)

    return Criterion(
        name=_named(measure.name, position),
        summary=f"1 - {measure.summary}",
        needs="forward",
        direction="high",
        score=score,
        cost="1 forward pass",
        source=measure.source,
        position=position,
        at=partial(similarity_criterion, measure),
        drifts_with_samples=measure.drifts_with_samples,
    )


def token_criterion(measure: TokenMeasure, position: str | None = None) -> Criterion:
    """The criterion that averages ``measure`` over the tokens of a position, and then over the samples."""

    def score(context: ScoringContext) -> list[float | Undefined]:
        values = context.representations(position).between[measure.name].double()
        bad = (~torch.isfinite(values)).sum(dim=1).tolist()
        return [
            Undefined(f"NaN or infinity in {count} of {values.shape[1]} samples") if count else float(row.mean())
            for row, count in zip(values, bad, strict=True)
        ]

    return Criterion(
        name=_named(measure.name, position),
        summary=measure.summary,
        needs="forward",
        direction="high",
        score=score,
        cost="1 forward pass",
        source=measure.source,
        position=position,
        at=partial(token_criterion, measure),
        measures=(measure,),
    )


def _named(name: str, position: str | None) -> str:
    return name if position is None else f"{name}@{position}"
