r"""Empirical Fisher information of each layer (Lodha et al. 2023, arXiv 2310.17041; the paper's rival).

.. math:: F_l = \frac{1}{n} \sum_i \sum_{j \in l} \Big(\frac{\partial \log p(y_i | x_i)}{\partial \theta_j}\Big)^2

Squares of each sample's gradient, not the square of a batch's: those differ by everything in which samples disagree.
"""

from __future__ import annotations

from layersift.score.context import ScoringContext
from layersift.score.criterion import Criterion
from layersift.score.probe import Undefined

NO_MAPS = "its block holds no linear map that sees every token"


def fisher_trace(context: ScoringContext) -> list[float | Undefined]:
    """The trace of each layer's Fisher information."""
    layers = context.gradients().by_layer(context.num_layers)
    return [sum(float(m.squared_norm.double().mean()) for m in ms) if ms else Undefined(NO_MAPS) for ms in layers]


def fisher_per_parameter(context: ScoringContext) -> list[float | Undefined]:
    """The same, divided by the number of the layer's parameters."""
    layers = context.gradients().by_layer(context.num_layers)
    traces = fisher_trace(context)
    return [
        t if isinstance(t, Undefined) else t / sum(m.parameters for m in ms)
        for t, ms in zip(traces, layers, strict=True)
    ]


FISHER = Criterion(
    name="fisher",
    summary="Fisher information of the layer's linear maps, the mean over their parameters",
    needs="gradients",
    direction="high",
    score=fisher_per_parameter,
    cost="1 forward and 1 backward pass",
    source="Lodha et al. 2023 (2310.17041), from the definition; normalised as in Pang et al. 2026",
)
FISHER_SUM = Criterion(
    name="fisher-sum",
    summary="Fisher information of the layer's linear maps, the sum over their parameters",
    needs="gradients",
    direction="high",
    score=fisher_trace,
    cost="1 forward and 1 backward pass",
    source="Lodha et al. 2023 (2310.17041), from the definition",
)
