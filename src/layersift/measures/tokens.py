"""Measures that compare what enters and what leaves a block token by token, and are averaged over tokens and samples.

They see what CKA is blind to by its invariances, a rotation or a common shift, and do not see what it sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenMeasure:
    """A dissimilarity of two hidden states of the same width; 0 for equal ones.

    Args:
        name: as in :data:`layersift.TOKEN_MEASURES`.
        summary: one line that says what it measures.
        between: takes two states (..., d) and returns (...).
        range: least and greatest value.
        invariant_to: some of ``orthogonal``, ``joint_scaling`` and ``separate_scaling``.
        source: the paper that defines it.

    Examples:
        >>> import torch
        >>> from layersift import TOKEN_MEASURES
        >>> before, after = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 3.0], [0.0, 4.0]])
        >>> TOKEN_MEASURES["cosine"].between(before, after)
        tensor([1., 0.])
    """

    name: str
    summary: str
    between: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    range: tuple[float, float]
    invariant_to: frozenset[str]
    source: str


def _cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(x, y, dim=-1, eps=1e-30).clamp(-1.0, 1.0)


def block_influence(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """1 - cos(x, y)."""
    return 1 - _cosine(x, y)


def angular_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The angle between x and y, in half turns. By atan2, since acos loses half of the digits at small angles."""
    u, v = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(y, dim=-1)
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)) / math.pi


def update_norm(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """|y - x| / |x|."""
    relative: torch.Tensor = torch.linalg.vector_norm(y - x, dim=-1) / torch.linalg.vector_norm(x, dim=-1)
    return relative


BLOCK_INFLUENCE = TokenMeasure(
    name="cosine",
    summary="1 - cosine of a token's state before and behind the block (Block Influence)",
    between=block_influence,
    range=(0.0, 2.0),
    invariant_to=frozenset({"orthogonal", "joint_scaling", "separate_scaling"}),
    source="Men et al. 2024, ShortGPT (2403.03853) eq. 1",
)
ANGULAR = TokenMeasure(
    name="angular",
    summary="angle between a token's state before and behind the block",
    between=angular_distance,
    range=(0.0, 1.0),
    invariant_to=frozenset({"orthogonal", "joint_scaling", "separate_scaling"}),
    source="Gromov et al. 2024 (2403.17887) eq. 6, one block at a time",
)
UPDATE_NORM = TokenMeasure(
    name="update-norm",
    summary="length of the block's update relative to what enters",
    between=update_norm,
    range=(0.0, math.inf),
    invariant_to=frozenset({"orthogonal", "joint_scaling"}),
    source="plain; the residual stream's own relative change",
)
