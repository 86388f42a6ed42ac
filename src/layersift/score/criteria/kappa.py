"""KappaTune (Ludwig 2025, arXiv 2506.16289; in PEFT since 0.21): maps of low condition number first."""

from __future__ import annotations

import math

import torch

from layersift.score.criterion import Criterion
from layersift.score.weights import rank_within_kind


def condition_number(weight: torch.Tensor) -> float:
    """Largest over smallest singular value, the latter raised by 1e-8 as in PEFT's helper; NaN where all are zero."""
    values = torch.linalg.svdvals(weight)
    return float(values[0] / (values[-1] + 1e-8)) if values[0] > 0 else math.nan


KAPPA = Criterion(
    name="kappa",
    summary="condition number of the weights, ranked within each kind of map",
    needs="weights",
    direction="low",
    score=lambda context: rank_within_kind(context.model, context.stack, condition_number),
    cost="singular values of every weight, no data",
    source="Ludwig 2025, KappaTune (2506.16289)",
    by_sample=False,
)
