r"""Signal-to-noise ratio of the gradient over the samples (Auto-SNR of Lee et al. 2023, after Mahsereci et al. 2017).

.. math:: SNR_l = \frac{|E_i\, G_i|^2}{tr\, Var_i\, G_i}

As a ratio of sums over the layer's parameters. The published code takes the variance over the rows of the weight
tensor, which is not what the paper speaks of.
"""

from __future__ import annotations

from layersift.score.context import ScoringContext
from layersift.score.criteria.fisher import NO_MAPS
from layersift.score.criterion import Criterion
from layersift.score.probe import Undefined


def signal_to_noise(context: ScoringContext) -> list[float | Undefined]:
    """Squared norm of the mean gradient over the summed variance, both from the gradients' sketches."""
    ratios: list[float | Undefined] = []
    for ms in context.gradients().by_layer(context.num_layers):
        mean = sum(float(m.sketch.double().mean(dim=0).square().sum()) for m in ms)
        variance = sum(float(m.sketch.double().var(dim=0).sum()) for m in ms)
        ratios.append(
            mean / variance if variance > 0 else Undefined(NO_MAPS if not ms else "its gradients do not vary")
        )
    return ratios


SNR = Criterion(
    name="snr",
    summary="signal-to-noise ratio of the layer's gradient over the samples",
    needs="gradients",
    direction="high",
    score=signal_to_noise,
    cost="1 forward and 1 backward pass",
    source="Lee et al. 2023 (2210.11466) section 5; Mahsereci et al. 2017 (1703.09580)",
)
