r"""First-order effect of taking a map away (Taylor pruning; Ma et al. 2023, LLM-Pruner, arXiv 2305.11627).

.. math:: s_l = \sum_{W \in l} \frac{1}{n} \sum_i |\langle W, G_i(W) \rangle|
"""

from __future__ import annotations

from layersift.score.context import ScoringContext
from layersift.score.criteria.fisher import NO_MAPS
from layersift.score.criterion import Criterion
from layersift.score.probe import Undefined


def taylor(context: ScoringContext) -> list[float | Undefined]:
    """Mean over the samples of how much the loss would change, to first order, without each of the layer's maps."""
    gradients = context.gradients()
    return [
        sum(gradients.mean_a_label(m.inner.double().abs()) for m in ms) if ms else Undefined(NO_MAPS)
        for ms in gradients.by_layer(context.num_layers)
    ]


TAYLOR = Criterion(
    name="taylor",
    summary="first-order change of the loss without the layer's linear maps",
    needs="gradients",
    direction="high",
    score=taylor,
    cost="1 forward and 1 backward pass",
    source="Ma et al. 2023, LLM-Pruner (2305.11627) eq. 3, first-order term",
)
