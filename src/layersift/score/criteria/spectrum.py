r"""Spectrum (Hartford et al. 2024, arXiv 2406.06623): how much of a weight stands out of random noise.

.. math:: SNR = \frac{\sum_{s_i > t} s_i}{\sum_{s_i \le t} s_i} \Big/ s_{max}, \quad t = \sigma (1 + \sqrt{\beta})

with the singular values s, \sigma their interquartile range / 1.349, and \beta the ratio of the sides.
"""

from __future__ import annotations

import math

import torch

from layersift.score.criterion import Criterion
from layersift.score.weights import rank_within_kind


def signal_to_noise(weight: torch.Tensor) -> float:
    """The authors' SNR of a matrix. Where no singular value is noise, the denominator is 1, as in their code."""
    values = torch.linalg.svdvals(weight)
    quarter, three_quarters = torch.quantile(
        values, torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device)
    )
    beta = min(weight.shape) / max(weight.shape)
    threshold = (three_quarters - quarter) / 1.349 * (1 + math.sqrt(beta))
    signal, noise = values[values > threshold], values[values <= threshold]
    return float(signal.sum() / (noise.sum() if len(noise) else 1.0) / values[0])


SPECTRUM = Criterion(
    name="spectrum",
    summary="signal-to-noise ratio of the weights' singular values, ranked within each kind of map",
    needs="weights",
    direction="high",
    score=lambda context: rank_within_kind(context.model, context.stack, signal_to_noise),
    cost="singular values of every weight, no data",
    source="Hartford et al. 2024 (2406.06623)",
    by_sample=False,
)
