"""Choose modules with ranks of their own, and make the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from layersift.config.select import SelectSettings
from layersift.errors import SelectionError
from layersift.load.blocks import BlockStack
from layersift.load.models import LoadedModel
from layersift.records.scores import LayerScores
from layersift.records.selection import Selection
from layersift.score.energies import module_energies
from layersift.select.layers import Chosen, planned_cost
from layersift.select.modules import choose_modules
from layersift.select.record import recorded
from layersift.select.sample import Sample
from layersift.select.subjects import subjects_of

if TYPE_CHECKING:
    from peft import PeftConfig

ENERGY = "gradient-energy"


def select_modules(
    loaded: LoadedModel,
    stack: BlockStack,
    sample: Sample,
    settings: SelectSettings,
    adapter: PeftConfig | None,
    progress: Callable[[int], None] | None = None,
) -> Selection:
    """Read the gradients of the sample's loss once, and share a budget out among the modules.

    A layer's importance is the energy of all its modules' mean gradients.

    Raises:
        SelectionError: the stack is several joined, there is no adapter to count, or not one module fits.
        AdapterError: the method has no ranks by module.
        ModelError, DataError: no gradients can be read.
    """
    if stack.joined:
        raise SelectionError("modules are chosen in one stack of blocks; name one tower")
    if adapter is None:
        raise SelectionError("modules need an adapter, the PEFT config whose ranks they share")
    (subject,) = subjects_of(loaded, stack, sample, settings, adapter=adapter, progress=progress)
    started = time.perf_counter()
    energies = module_energies(subject.gradients())
    scored = time.perf_counter()
    chosen = choose_modules(
        loaded.model,
        stack,
        energies,
        adapter,
        settings,
        lambda what: planned_cost(loaded.model, stack, sample, adapter, what),
    )
    by_layer: dict[int, float] = {}
    for (layer, _), of in energies.items():
        by_layer[layer] = by_layer.get(layer, 0.0) + sum(of)
    layers = range(stack.num_layers)
    scores = LayerScores(
        criterion=ENERGY,
        importance=tuple(map(by_layer.get, layers)),
        undefined={i: "no gradient was read of its modules" for i in layers if i not in by_layer},
        top_dimension_share=(None,) * stack.num_layers,
        num_samples=len(sample.examples),
        seconds=round(scored - started, 3),
    )
    whole = Chosen(tuple(sorted(chosen.ranks)), chosen.rule)
    return recorded(
        loaded, stack, sample, settings, scores, whole, seconds={"score": scores.seconds}, modules=chosen.ranks
    )
