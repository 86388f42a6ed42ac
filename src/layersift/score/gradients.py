r"""Gradients of each sample's loss with respect to every linear map of every block, from one backward pass.

No weight requires a gradient and none is stored: with x_t what enters a linear map at token t and \delta_t the loss's
gradient at its output, the gradient of its weight is G = \sum_t \delta_t x_t^T, and what criteria ask of G follows
from the two sides:

- |G|^2 = \sum_{t,u} (\delta_t \cdot \delta_u) (x_t \cdot x_u), exactly, from two T x T matrices;
- <W, G> = \sum_t \delta_t \cdot W x_t, from the output itself;
- inner products of different samples' gradients from a sketch C G A^T. A is what a LoRA adapter's A is, and G A^T the
  gradient of its B = 0; C shrinks the other side alike, so that a sketch of 16 x 64 numbers a sample can be kept.

Left out is what a map does to something else than the samples' tokens, as DeBERTa's maps of queries and keys do to its
relative positions, and maps that see some tokens only, as experts do.

So a pass needs the activations that backpropagation needs anyway, whatever the base weights are stored as, and each
sample's gradient is had although samples share a batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from layersift.errors import ModelError
from layersift.score.backward import Seen, backward_pass
from layersift.score.probe import ProbeBatch
from layersift.score.weights import weight_of

SKETCH = (16, 64)


@dataclass(frozen=True)
class ModuleGradients:
    """What is kept of one linear map's gradients, of each of n samples."""

    layer: int
    name: str  # relative to its block
    parameters: int
    weight_norm: float
    squared_norm: torch.Tensor  # (n,) |G|^2
    inner: torch.Tensor  # (n,) <W, G>
    sketch: torch.Tensor  # (n, 16 x 64), inner products of which are those of the gradients, up to chance


@dataclass(frozen=True)
class Gradients:
    """Gradients of the samples' negative log-likelihoods (of a response, summed over its tokens)."""

    modules: tuple[ModuleGradients, ...]
    labelled: torch.Tensor  # (n,) tokens, or other labelled things, in each sample

    def of(self, samples: torch.Tensor) -> Gradients:
        """The same of some of the samples."""
        modules = tuple(
            replace(m, squared_norm=m.squared_norm[samples], inner=m.inner[samples], sketch=m.sketch[samples])
            for m in self.modules
        )
        return Gradients(modules, self.labelled[samples])

    def joined(self, other: Gradients) -> Gradients:
        """The gradients of two samples as those of one."""
        modules = tuple(
            replace(
                a,
                squared_norm=torch.cat([a.squared_norm, b.squared_norm]),
                inner=torch.cat([a.inner, b.inner]),
                sketch=torch.cat([a.sketch, b.sketch]),
            )
            for a, b in zip(self.modules, other.modules, strict=True)
        )
        return Gradients(modules, torch.cat([self.labelled, other.labelled]))

    def mean_a_label(self, values: torch.Tensor) -> float:
        """Mean of values (n,) over the labels of each sample; samples without a label, which have no loss, left out."""
        some = self.labelled > 0
        return float((values[some] / self.labelled[some]).mean())

    def by_layer(self, num_layers: int) -> list[list[ModuleGradients]]:
        """The modules of each layer."""
        return [[m for m in self.modules if m.layer == layer] for layer in range(num_layers)]


def read_gradients(probe: ProbeBatch) -> Gradients:
    """The gradients of all samples of ``probe``.

    Raises:
        ModelError: the model has no head that a loss could be taken of, or its blocks hold no linear maps.
    """
    count = len(probe.examples)
    by_module: dict[tuple[int, str], ModuleGradients] = {}

    def take(layer: int, name: str, module: nn.Module, seen: Seen) -> None:
        if (layer, name) not in by_module:
            weight = weight_of(module)
            empty = partial(torch.zeros, count)
            by_module[layer, name] = ModuleGradients(
                layer,
                name,
                weight.numel(),
                float(weight.float().norm()),
                empty(),
                empty(),
                empty(SKETCH[0] * SKETCH[1]),
            )
        place = by_module[layer, name]
        x, delta = seen.entering.float(), seen.gradient.float()
        bias = getattr(module, "bias", None)
        output = seen.output.float() - (bias.float() if isinstance(bias, torch.Tensor) else 0.0)
        squared = ((x @ x.mT) * (delta @ delta.mT)).sum(dim=(1, 2))
        left, right = _projections(probe.seed, f"{layer}:{name}", delta.shape[-1], x.shape[-1], x.device)
        sketch = (delta @ left).mT @ (x @ right)
        place.squared_norm[seen.rows] = squared.cpu()
        place.inner[seen.rows] = (delta * output).sum(dim=(1, 2)).cpu()
        place.sketch[seen.rows] = sketch.flatten(1).cpu()

    labelled = backward_pass(probe, take)
    if not by_module:
        raise ModelError(f"{type(probe.model).__name__} has no linear maps in its blocks that see every token")
    order = sorted(by_module, key=lambda key: key)
    return Gradients(tuple(by_module[key] for key in order), labelled)


def _projections(
    seed: int, name: str, out_features: int, in_features: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian C^T (m, 16) and A^T (k, 64), scaled so that the sketch keeps inner products on average."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    left = torch.randn(out_features, SKETCH[0], generator=generator) / SKETCH[0] ** 0.5
    right = torch.randn(in_features, SKETCH[1], generator=generator) / SKETCH[1] ** 0.5
    return left.to(device), right.to(device)


DIRECTIONS = min(SKETCH)


def module_energies(gradients: Gradients) -> dict[tuple[int, str], tuple[float, ...]]:
    """Energies, the largest first, of each module by layer and name within its block."""
    labels = float(gradients.labelled.sum())
    energies = {}
    for module in gradients.modules:
        mean = module.sketch.double().sum(dim=0).reshape(SKETCH) / labels
        energies[module.layer, module.name] = tuple(torch.linalg.svdvals(mean).square().tolist())
    return energies
