"""Trained LoRA updates by their singular values: which directions are the largest, and factors of these alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from layersift.errors import AdapterError


@dataclass(frozen=True)
class Update:
    """What a LoRA pair adds to a weight: scale times B (out, rank) times A (rank, in)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Of the factors, whatever the product's is."""
        return int(self.a.shape[0])

    @property
    def price(self) -> int:
        """Parameters of one direction."""
        return int(self.a.shape[1] + self.b.shape[0])

    @cached_property
    def decomposition(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """U (out, k), the singular values descending, and V transposed (k, in), in float64.

        The product itself, which may be large, is not formed: QR of both factors, then SVD of a rank by rank matrix.
        """
        q_out, r_out = torch.linalg.qr(self.b.double())
        q_in, r_in = torch.linalg.qr(self.a.double().T)
        left, values, right = torch.linalg.svd(self.scale * r_out @ r_in.T)
        count = len(values)
        return q_out @ left[:, :count], values, right[:count] @ q_in.T

    @property
    def values(self) -> list[float]:
        """The singular values, descending."""
        singular_values: list[float] = self.decomposition[1].tolist()
        return singular_values

    def truncated(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of the first directions, of the same type and under the same scale, neither larger than the other."""
        left, values, right = self.decomposition
        root = (values[:rank] / self.scale).sqrt()
        a, b = root[:, None] * right[:rank], left[:, :rank] * root
        return a.to(self.a.dtype).contiguous(), b.to(self.b.dtype).contiguous()


def keep_largest(updates: Mapping[str, Update], parameters: int) -> dict[str, int]:
    """The rank left to each update where only the largest singular values of all are kept; 0 drops the module.

    One threshold parts what is kept from what is dropped: the lowest within the budget. Of equal values the first
    names' are kept.

    Source: PARA (2604.27796).

    Args:
        parameters: the most that all factors together may have.

    Raises:
        AdapterError: an update is not finite, or the budget is not enough for the largest direction.
    """
    for name, update in updates.items():
        if not (torch.isfinite(update.a).all() and torch.isfinite(update.b).all()):
            raise AdapterError(f"the adapters of {name} are not finite; nothing can be pruned by their size")
    pooled = sorted(
        ((value, name) for name, update in updates.items() for value in update.values),
        key=lambda entry: (-entry[0], entry[1]),
    )
    ranks, left = dict.fromkeys(updates, 0), parameters
    for value, name in pooled:
        left -= updates[name].price
        if left < 0 or value <= 0:
            break
        ranks[name] += 1
    if not any(ranks.values()):
        first = updates[pooled[0][1]].price
        raise AdapterError(
            f"a budget of {parameters:,} parameters is not enough for one direction; {first:,} are, of {pooled[0][1]}"
        )
    return ranks


def norm_of(values: Sequence[float]) -> float:
    """The Frobenius norm of updates with these singular values."""
    return math.sqrt(math.fsum(value * value for value in values))
