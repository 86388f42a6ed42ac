"""Linear CKA that no single dimension, sample or token can dominate.

Plain CKA weighs directions by the square of their variance. One dimension thirty times as wide as the others, which
trained decoders have, makes two otherwise unrelated representations look alike; one sample thirty times as far out
does the same. So, before the debiased CKA:

- every dimension is centred at its median and divided by its interquartile range: outlier samples do not move either,
  and an outlier dimension counts like any other. A dimension whose quartiles coincide carries nothing but outliers and
  is left out;
- every sample is then scaled to length 1: an outlier sample counts like any other, and neither does the growth of the
  residual stream from block to block count.
"""

from __future__ import annotations

import torch

from .base import Measure
from .cka import PreparedCKA, compare_cka, prepare_cka


def tame(x: torch.Tensor) -> torch.Tensor:
    """``x`` (n, d) with dimensions centred at the median, scaled by the interquartile range, and rows of length 1."""
    low, middle, high = torch.quantile(x, torch.tensor([0.25, 0.5, 0.75], dtype=x.dtype, device=x.device), dim=0)
    spread = high - low
    scaled = torch.where(spread > 0, (x - middle) / spread.clamp_min(torch.finfo(x.dtype).tiny), 0.0)
    norms = scaled.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, scaled / norms.clamp_min(torch.finfo(x.dtype).tiny), 0.0)


def prepare_robust(x: torch.Tensor) -> PreparedCKA:
    """The debiased CKA's preparation of the tamed representation."""
    return prepare_cka(tame(x), debiased=True)


def compare_robust(x: PreparedCKA, y: PreparedCKA) -> float:
    """Debiased CKA of two tamed representations."""
    return compare_cka(x, y, debiased=True)


CKA_ROBUST = Measure(
    name="cka-robust",
    summary="debiased linear CKA on scaled dimensions and samples of equal length",
    prepare=prepare_robust,
    compare=compare_robust,
    higher_is_more_similar=True,
    range=(-1.0, 1.0),
    min_samples=8,
    invariant_to=frozenset({"isotropic_scaling", "translation"}),
    source="ours: after Timkey & van Schijndel 2021 (2109.04404) and Davari et al. 2022 (2210.16156)",
)
