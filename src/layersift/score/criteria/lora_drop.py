r"""LoRA-drop (Zhou et al. 2024, arXiv 2402.07721): which adapters end up doing something.

LoRA on all layers is trained for a few steps on the sample; then

.. math:: s_l = \frac{\sum_x |\Delta W_l x|^2}{\sum_{l'} \sum_x |\Delta W_{l'} x|^2}

Without the paper's sharing of one adapter among the layers left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from layersift.score.context import ScoringContext
from layersift.score.criterion import Criterion
from layersift.score.probe import Undefined
from layersift.score.short_training import mean_loss, train_steps, with_adapters


def lora_drop(context: ScoringContext) -> list[float | Undefined]:
    """Share of each layer in what the trained adapters add to the outputs of their maps."""
    added = [0.0] * context.num_layers
    with with_adapters(context) as model:
        parameters = [p for p in model.parameters() if p.requires_grad]
        train_steps(context, model, parameters, context.examples, context.probe_steps, context.seed)
        with torch.no_grad(), _measuring(context, added):
            for example in context.examples:  # one at a time: padding would be added up, too
                mean_loss(context, model, [example])
    total = sum(added)
    return [a / total if total > 0 else Undefined("the adapters added nothing") for a in added]


@contextmanager
def _measuring(context: ScoringContext, added: list[float]) -> Iterator[None]:
    """While active, forward passes add up what each layer's adapters add to the outputs of their maps, squared."""

    asking = False

    def watch(layer: int) -> Callable[[Any, tuple[Any, ...], Any], None]:
        def hook(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
            nonlocal asking
            if asking:  # an adapter inside of another, as on stacked experts, which has run once already
                return
            asking = True
            try:
                without = module.base_layer(*args)
            finally:
                asking = False
            added[layer] += float((output - without).float().square().sum())

        return hook

    handles = []
    for layer, block in enumerate(context.stack.blocks(context.model)):
        adapted = [m for m in block.modules() if isinstance(getattr(m, "base_layer", None), nn.Module)]
        handles += [module.register_forward_hook(watch(layer)) for module in adapted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


LORA_DROP = Criterion(
    name="lora-drop",
    summary="what briefly trained adapters add to the outputs, by layer",
    needs="training",
    direction="high",
    score=lora_drop,
    cost="a short training of all layers",
    source="Zhou et al. 2024, LoRA-drop (2402.07721) eq. 5 and 6, without sharing",
    by_sample=False,
)
