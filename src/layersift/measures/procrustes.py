r"""Orthogonal Procrustes similarity (Ding et al. 2021, arXiv 2108.01661).

.. math:: s(X, Y) = |A^T B|_*, \quad A = X_c / |X_c|_F,\ B = Y_c / |Y_c|_F

The distance after the best rotation is sqrt(2 - 2 s). The nuclear norm adds singular values where CKA adds their
squares, so the largest directions dominate less.
"""

from __future__ import annotations

import math

import torch

from .base import Measure


def prepare_procrustes(x: torch.Tensor) -> torch.Tensor | None:
    """``x`` (n, d) centred, of Frobenius norm 1, and turned into its n x n coordinates where n < d; None if constant.

    A rotation of the columns changes nothing, so a wide matrix may be replaced by a square factor of its Gram matrix.
    """
    centred = x - x.mean(dim=0)
    norm = float(torch.linalg.matrix_norm(centred))
    if not norm > 0:
        return None
    unit: torch.Tensor = centred / norm
    if len(x) >= x.shape[1]:
        return unit
    values, vectors = torch.linalg.eigh(unit @ unit.T)
    coordinates: torch.Tensor = vectors * values.clamp_min(0).sqrt()
    return coordinates


def compare_procrustes(x: torch.Tensor | None, y: torch.Tensor | None) -> float:
    """Nuclear norm of the cross-product, from 0 to 1; NaN where one representation does not vary."""
    if x is None or y is None:
        return math.nan
    return float(torch.linalg.svdvals(x.T @ y).sum())


PROCRUSTES = Measure(
    name="procrustes",
    summary="overlap after the best rotation",
    prepare=prepare_procrustes,
    compare=compare_procrustes,
    higher_is_more_similar=True,
    range=(0.0, 1.0),
    min_samples=2,
    invariant_to=frozenset({"orthogonal", "isotropic_scaling", "translation"}),
    source="Ding et al. 2021 (2108.01661) eq. 4",
    drifts_with_samples=True,
)
