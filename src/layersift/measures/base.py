"""What a similarity measure is: two functions and the facts that the tests check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Measure:
    """A similarity between two representations of the same n samples.

    ``prepare`` takes one representation (n, d), float64, and does all work that involves it alone, so that each
    Gram matrix is computed once although every representation takes part in two comparisons.
    ``compare`` takes two prepared representations and returns their similarity, NaN where it is undefined.
    """

    name: str
    summary: str
    prepare: Callable[[torch.Tensor], Any]
    compare: Callable[[Any, Any], float]
    higher_is_more_similar: bool
    range: tuple[float, float]
    min_samples: int
    invariant_to: frozenset[str]  # of: orthogonal, isotropic_scaling, translation, invertible_linear
    source: str
    # The prepared form of some of the samples, from that of all and their rows; None: they have to be prepared anew.
    subset: Callable[[Any, torch.Tensor], Any] | None = None
    # Whether its bias depends on n so strongly that halves of a sample say nothing of where the truth lies.
    drifts_with_samples: bool = False

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Similarity of ``x`` (n, d1) and ``y`` (n, d2); row i of both belongs to sample i.

        Raises:
            ValueError: other than two dimensions, different n, or n below ``min_samples``.
        """
        for name, value in (("x", x), ("y", y)):
            if value.ndim != 2:
                raise ValueError(f"expected `{name}` of shape (n, d), got {tuple(value.shape)}")
        if len(x) != len(y):
            raise ValueError(f"expected the same samples in both, got n = {len(x)} and n = {len(y)}")
        if len(x) < self.min_samples:
            raise ValueError(f"{self.name} needs at least {self.min_samples} samples, got {len(x)}")
        return self.compare(self.prepare(x.double()), self.prepare(y.double()))
