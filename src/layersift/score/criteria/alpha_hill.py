r"""Heavy-tail exponent of the weights' spectra (AlphaLoRA, Qing et al. 2024, arXiv 2410.10054).

Hill's estimator over the upper half of the N eigenvalues \lambda of W^T W, i = floor(N / 2):

.. math:: \alpha = 1 + \frac{N - i}{\sum_{j \ge i} \ln \lambda_j - (N - i) \ln \lambda_i}

A high exponent is a light tail: a map that pre-training has shaped least, which is given more to learn.
"""

from __future__ import annotations

import math

import torch

from layersift.score.criterion import Criterion
from layersift.score.weights import rank_within_kind

SMALLEST = 1e-10  # eigenvalues below are rounding


def hill_exponent(weight: torch.Tensor) -> float:
    """The exponent, or NaN where the spectrum has no tail to fit."""
    eigenvalues = torch.linalg.svdvals(weight).double().square().sort().values
    eigenvalues = eigenvalues[eigenvalues > SMALLEST]
    start = len(eigenvalues) // 2
    tail = eigenvalues[start:].log()
    spread = float((tail - tail[0]).sum()) if len(tail) else 0.0
    return 1 + len(tail) / spread if spread > 0 else math.nan


ALPHA_HILL = Criterion(
    name="alpha-hill",
    summary="heavy-tail exponent of the weights' spectra, ranked within each kind of map",
    needs="weights",
    direction="high",
    score=lambda context: rank_within_kind(context.model, context.stack, hill_exponent),
    cost="singular values of every weight, no data",
    source="Qing et al. 2024, AlphaLoRA (2410.10054)",
    by_sample=False,
)
