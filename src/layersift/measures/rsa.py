"""Representational similarity analysis (Kriegeskorte et al. 2008): do the samples keep their mutual distances' order?

The Spearman correlation of two dissimilarity matrices, each 1 - the Pearson correlation of two samples' vectors.
"""

from __future__ import annotations

import math

import torch

from .base import Measure


def prepare_rsa(x: torch.Tensor) -> torch.Tensor | None:
    """Centred ranks of the n (n - 1) / 2 dissimilarities of ``x`` (n, d); None where they do not vary."""
    rows = x - x.mean(dim=1, keepdim=True)
    norms = rows.norm(dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        return None
    unit = rows / norms
    first, second = torch.triu_indices(len(x), len(x), offset=1)
    distances = (1 - unit @ unit.T)[first, second].round(decimals=12)  # equal distances are ties, rounding apart
    from scipy.stats import rankdata  # takes a second to import, and other measures have no use for it

    ranks = torch.from_numpy(rankdata(distances.cpu().numpy()))
    centred = ranks - ranks.mean()
    return centred if bool(centred.any()) else None


def compare_rsa(x: torch.Tensor | None, y: torch.Tensor | None) -> float:
    """Spearman correlation; NaN where one of the two does not vary."""
    return math.nan if x is None or y is None else float(x @ y / (x.norm() * y.norm()))


RSA = Measure(
    name="rsa",
    summary="rank correlation of the samples' mutual distances",
    prepare=prepare_rsa,
    compare=compare_rsa,
    higher_is_more_similar=True,
    range=(-1.0, 1.0),
    min_samples=4,
    invariant_to=frozenset({"isotropic_scaling"}),
    source="Kriegeskorte et al. 2008 (10.3389/neuro.06.004.2008)",
)
