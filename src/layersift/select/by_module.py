"""Choose modules with ranks of their own, and make the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from layersift.config.quantities import parse_objective
from layersift.config.select import SelectSettings
from layersift.errors import SelectionError
from layersift.load.blocks import BlockStack
from layersift.load.models import LoadedModel
from layersift.provenance import command, versions
from layersift.records.selection import Selection
from layersift.score.energies import module_energies
from layersift.select.layers import planned_cost
from layersift.select.modules import choose_modules
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
    what = None if settings.objective is None else parse_objective(settings.objective).what
    cost = None if what is None else planned_cost(loaded.model, stack, sample, adapter, what)
    chosen = choose_modules(loaded.model, stack, energies, adapter, settings, cost)
    by_layer = [sum(sum(of) for (layer, _), of in energies.items() if layer == i) for i in range(stack.num_layers)]
    seen = {layer for layer, _ in energies}
    importance = tuple(value if i in seen else None for i, value in enumerate(by_layer))
    ranking = tuple(sorted(seen, key=lambda i: (-by_layer[i], i)))
    return Selection(
        model=loaded.name,
        model_revision=loaded.revision,
        tower=stack.tower,
        block_pattern=stack.pattern,
        num_layers=stack.num_layers,
        importance=importance,
        undefined={i: "no gradient was read of its modules" for i in range(stack.num_layers) if i not in seen},
        ranking=ranking,
        selected_layers=tuple(sorted(chosen.ranks)),
        rule=chosen.rule,
        position="",
        metric=ENERGY,
        num_samples=len(sample.examples),
        seed=settings.seed,
        data=sample.data,
        top_dimension_share=(None,) * stack.num_layers,
        seconds={"score": round(scored - started, 3)},
        versions=versions(),
        command=command(),
        modules=chosen.ranks,
    )
