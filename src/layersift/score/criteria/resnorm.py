r"""Gradient norm in the metric of the activations (Layer Card, Xu et al. 2026, arXiv 2602.04019).

.. math:: s_l^2 = \sum_{W \in l} |G\, \Sigma^{-1/2}|_F^2, \quad \Sigma = E[x x^T] + \lambda \frac{tr}{k} I

with G the mean gradient of the samples' losses and x what enters the map: how far the loss can be brought down where
steps are counted by what they do to the outputs. The paper's text was not at hand; this is the form it takes for
squared loss and linear adapters.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from layersift.processes import sum_over_processes
from layersift.score.context import ScoringContext
from layersift.score.criteria.fisher import NO_MAPS
from layersift.score.criterion import Criterion
from layersift.score.gradients import Seen, backward_pass
from layersift.score.probe import Undefined

RIDGE = 1e-3


def resnorm(context: ScoringContext) -> list[float | Undefined]:
    """The norm of each layer. Keeps a gradient and a k x k matrix of every map while it runs."""
    # Of each map: the gradient (m, k) summed over the samples, x x^T (k, k) and how many x, summed over the tokens.
    moments: dict[tuple[int, str, str], torch.Tensor] = {}

    def take(layer: int, name: str, module: nn.Module, seen: Seen) -> None:
        real = seen.real.bool()
        x, delta = seen.entering[real].float(), seen.gradient[real].float()
        sides = {"gradient": delta.T @ x, "second": x.T @ x, "tokens": torch.tensor(float(len(x)))}
        for side, value in sides.items():
            before = moments.get((layer, name, side))
            moments[layer, name, side] = value.cpu() if before is None else before.add_(value.cpu())

    backward_pass(context, take)
    sums = sum_over_processes(moments)
    squared: dict[int, float] = {}
    for layer, name in sorted({(layer, name) for layer, name, _ in sums}):
        gradient, second, tokens = (sums[layer, name, side] for side in ("gradient", "second", "tokens"))
        own = _squared_norm(gradient / len(context.examples), second / tokens)
        squared[layer] = squared.get(layer, 0.0) + own
    return [math.sqrt(squared[i]) if i in squared else Undefined(NO_MAPS) for i in range(context.num_layers)]


def _squared_norm(gradient: torch.Tensor, second: torch.Tensor) -> float:
    """Of a mean gradient (m, k) in the metric of the second moments (k, k)."""
    second = second.double()
    second.diagonal().add_(RIDGE * float(second.diagonal().mean()))
    if not bool(torch.isfinite(second).all()):
        return math.nan
    factor = torch.linalg.cholesky(second)
    return float(torch.linalg.solve_triangular(factor, gradient.double().T, upper=False).square().sum())


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
