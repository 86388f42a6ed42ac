r"""Gradient norm in the metric of the activations (Layer Card, Xu et al. 2026, arXiv 2602.04019).

.. math:: s_l^2 = \sum_{W \in l} |G\, \Sigma^{-1/2}|_F^2, \quad \Sigma = E[x x^T] + \lambda \frac{tr}{k} I

with G the mean gradient of the samples' losses and x what enters the map: how far the loss can be brought down where
steps are counted by what they do to the outputs. The paper's text was not at hand; this is the form it takes for
squared loss and linear adapters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from layersift.score.context import ScoringContext
from layersift.score.criteria.fisher import NO_MAPS
from layersift.score.criterion import Criterion
from layersift.score.gradients import Seen, backward_pass
from layersift.score.probe import Undefined

RIDGE = 1e-3


@dataclass
class _Moments:
    gradient: torch.Tensor  # (m, k), summed over the samples
    second: torch.Tensor  # (k, k), summed over the tokens
    tokens: float = 0.0


def resnorm(context: ScoringContext) -> list[float | Undefined]:
    """The norm of each layer. Keeps a gradient and a k x k matrix of every map while it runs."""
    moments: dict[tuple[int, str], _Moments] = {}

    def take(layer: int, name: str, module: nn.Module, seen: Seen) -> None:
        k, m = seen.entering.shape[-1], seen.gradient.shape[-1]
        place = moments.setdefault((layer, name), _Moments(torch.zeros(m, k), torch.zeros(k, k)))
        real = seen.real.bool()
        x, delta = seen.entering[real].float(), seen.gradient[real].float()
        place.gradient += (delta.T @ x).cpu()
        place.second += (x.T @ x).cpu()
        place.tokens += len(x)

    backward_pass(context, take)
    squared = [0.0] * context.num_layers
    for (layer, _), mean in moments.items():
        squared[layer] += _squared_norm(mean, len(context.examples))
    has_maps = {layer for layer, _ in moments}
    return [math.sqrt(s) if layer in has_maps else Undefined(NO_MAPS) for layer, s in enumerate(squared)]


def _squared_norm(moments: _Moments, samples: int) -> float:
    second = (moments.second / moments.tokens).double()
    second.diagonal().add_(RIDGE * float(second.diagonal().mean()))
    if not bool(torch.isfinite(second).all()):
        return math.nan
    factor = torch.linalg.cholesky(second)
    gradient = (moments.gradient / samples).double()
    return float(torch.linalg.solve_triangular(factor, gradient.T, upper=False).square().sum())


RESNORM = Criterion(
    name="resnorm",
    summary="norm of the gradient relative to the energy of what enters each map",
    needs="gradients",
    direction="high",
    score=resnorm,
    cost="1 forward and 1 backward pass; memory of all weights and k x k for each; a Cholesky factor of each",
    source="Xu et al. 2026, Layer Card (2602.04019), projected residual norm",
    by_sample=False,
)
