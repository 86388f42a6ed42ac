r"""CKA with a Gaussian kernel (Kornblith et al. 2019, section 4), debiased like the linear one.

.. math:: K_{ij} = exp(-|x_i - x_j|^2 / (2 s^2)), \quad s = 0.8 \cdot median_{i<j} |x_i - x_j|

The median makes the bandwidth follow the scale of the data, so that one far-off sample does not set it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .base import Measure
from .cka import u_centre

BANDWIDTH = 0.8  # of the median distance between two samples; the widest of those in Kornblith et al.


@dataclass(frozen=True)
class PreparedRBF:
    """One representation's U-centred kernel matrix and its norm."""

    gram: torch.Tensor  # (n, n)
    self_hsic: float


def prepare_rbf(x: torch.Tensor) -> PreparedRBF:
    """U-centred Gaussian kernel matrix of ``x`` (n, d)."""
    n = len(x)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    above = distances[torch.triu_indices(n, n, offset=1).unbind()].sort().values
    # torch.median gives the lower one of two middle values.
    median = float(above[(len(above) - 1) // 2] + above[len(above) // 2]) / 2
    scale = 2 * (BANDWIDTH * median) ** 2
    gram = u_centre(torch.exp(-distances.square() / scale)) if scale > 0 else torch.zeros_like(distances)
    return PreparedRBF(gram, float(gram.square().sum()))


def compare_rbf(x: PreparedRBF, y: PreparedRBF) -> float:
    """Debiased CKA of two kernels; NaN where one of them does not vary."""
    scale = math.sqrt(x.self_hsic) * math.sqrt(y.self_hsic)
    return float((x.gram * y.gram).sum()) / scale if scale > 0 else math.nan


CKA_RBF = Measure(
    name="cka-rbf",
    summary="CKA with a Gaussian kernel, debiased",
    prepare=prepare_rbf,
    compare=compare_rbf,
    higher_is_more_similar=True,
    range=(-1.0, 1.0),
    min_samples=4,
    invariant_to=frozenset({"orthogonal", "isotropic_scaling", "translation"}),
    source="Kornblith et al. 2019 (1905.00414) section 4, with Song et al. 2012 eq. 5",
)
