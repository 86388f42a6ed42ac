r"""Gradient norms: plain (Aletheia, Saket 2026, arXiv 2604.15351), and relative to the weights (Lee et al. 2023).

.. math:: s_l = \frac{1}{n} \sum_i \sum_{W \in l} |G_i(W)|_F, \quad
          RGN_l = \frac{1}{n} \sum_i \frac{|G_i(l)|}{|\theta_l|}

of each sample's loss, the mean over its labelled tokens: a batch of one sample, as Aletheia's probe has it.
"""

from __future__ import annotations

import math

import torch

from layersift.score.context import ScoringContext
from layersift.score.criteria.fisher import NO_MAPS
from layersift.score.criterion import Criterion
from layersift.score.probe import Undefined


def gradient_norm(context: ScoringContext) -> list[float | Undefined]:
    """Mean over the samples of the summed norms of a layer's gradients."""
    gradients = context.gradients()
    return [
        float(sum(gradients.mean_a_label(m.squared_norm.double().sqrt()) for m in ms)) if ms else Undefined(NO_MAPS)
        for ms in gradients.by_layer(context.num_layers)
    ]


def relative_gradient_norm(context: ScoringContext) -> list[float | Undefined]:
    """Mean over the samples of the norm of a layer's gradient, over the norm of its weights."""
    gradients = context.gradients()
    norms: list[float | Undefined] = []
    for ms in gradients.by_layer(context.num_layers):
        if not ms:
            norms.append(Undefined(NO_MAPS))
            continue
        squared = torch.stack([m.squared_norm for m in ms]).double().sum(dim=0)
        norm = gradients.mean_a_label(squared.sqrt())
        norms.append(norm / math.sqrt(sum(m.weight_norm**2 for m in ms)))
    return norms


GRADIENT_NORM = Criterion(
    name="gradient-norm",
    summary="norm of the gradients of the layer's linear maps",
    needs="gradients",
    direction="high",
    score=gradient_norm,
    cost="1 forward and 1 backward pass",
    source="Saket 2026, Aletheia (2604.15351), padding left out of the loss",
)
RELATIVE_GRADIENT_NORM = Criterion(
    name="rgn",
    summary="norm of the layer's gradient relative to its weights",
    needs="gradients",
    direction="high",
    score=relative_gradient_norm,
    cost="1 forward and 1 backward pass",
    source="Lee et al. 2023, surgical fine-tuning (2210.11466) section 5, by layer",
)
