r"""How much of a module's gradient an adapter of some rank could follow.

.. math:: e_k = \sigma_k^2\Big(\frac{\sum_i C G_i A^T}{\sum_i n_i}\Big), \quad G_i = \nabla_W \mathcal{L}_i

the energy of the k-th direction of the mean gradient over the sample, a label (a response's token) counting alike. With
C the identity and A a LoRA adapter's A, G A^T is the gradient at its B = 0, whose energy arXiv 2605.06183 ranks modules
by; C shrinks the other side alike, so that sixteen directions are had of the sketches that are kept.
"""

from __future__ import annotations

import torch

from layersift.score.gradients import SKETCH, Gradients

DIRECTIONS = min(SKETCH)


def module_energies(gradients: Gradients) -> dict[tuple[int, str], tuple[float, ...]]:
    """Energies, the largest first, of each module by layer and name within its block."""
    labels = float(gradients.labelled.sum())
    found = {}
    for module in gradients.modules:
        mean = module.sketch.double().sum(dim=0).reshape(SKETCH) / labels
        found[module.layer, module.name] = tuple(torch.linalg.svdvals(mean).square().tolist())
    return found
