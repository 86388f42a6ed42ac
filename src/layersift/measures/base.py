"""What a similarity measure is: two functions and the facts that the tests check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Measure:
    """A similarity between two representations of the same n samples.

    ``prepare`` runs once for each representation, although every representation takes part in two comparisons.

    Args:
        name: as in :data:`layersift.MEASURES`.
        summary: one line that says what it measures.
        prepare: takes one representation (n, d), float64, and does all work that involves it alone.
        compare: takes two prepared representations and returns their similarity, NaN where it is undefined.
        higher_is_more_similar: whether equal representations give the upper end of ``range``.
        range: least and greatest value.
        min_samples: the fewest samples n that it is defined for.
        invariant_to: some of ``orthogonal``, ``isotropic_scaling``, ``translation`` and ``invertible_linear``.
        source: the paper that defines it.
        subset: gives the prepared form of some rows from that of all; None: they are prepared anew.
        drifts_with_samples: whether its bias depends on n so strongly that halves of a sample say nothing of the whole.

    Examples:
        >>> import torch
        >>> from layersift import MEASURES
        >>> states = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0], [3.0, 5.0]])
        >>> round(MEASURES["cka"](states, 2 * states), 3)
        1.0
        >>> round(MEASURES["cka"](states, states**2), 3)
        0.143
    """

    name: str
    summary: str
    prepare: Callable[[torch.Tensor], Any]
    compare: Callable[[Any, Any], float]
    higher_is_more_similar: bool
    range: tuple[float, float]
    min_samples: int
    invariant_to: frozenset[str]
    source: str
    subset: Callable[[Any, torch.Tensor], Any] | None = None
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
