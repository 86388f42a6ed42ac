"""Where a selection's adapters go, by full names, and at which ranks: what every trainer is told."""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from layersift.adapt.attach import verify
from layersift.adapt.inspection import trained_by_layer, without_weights
from layersift.adapt.methods import adapter_config, alpha_at_rank
from layersift.adapt.targets import Targets, derive_config, resolve_targets
from layersift.config.inputs import ModelSource
from layersift.config.train import TrainSettings
from layersift.errors import AdapterError
from layersift.export.wanted import Wanted
from layersift.models.load import empty_model
from layersift.records.selection import Selection


@dataclass(frozen=True)
class Placement:
    """LoRA on exactly the selected layers of one model, resolved without its weights."""

    selection: Selection
    config: Any  # the LoraConfig by which PEFT adapts exactly these
    modules: tuple[str, ...]  # full names, sorted
    parameters: tuple[str, ...]  # experts held as one stacked nn.Parameter
    ranks: dict[str, int]  # of the modules that have another rank than the rest
    by_names: bool  # PEFT, given the names alone, adapts exactly these
    inside_others: tuple[str, ...]  # modules elsewhere whose name has an adapted one's within it
    trained: int  # parameters of the adapters

    @property
    def rank(self) -> int:
        """Of the modules that have none of their own."""
        return int(self.config.r)

    @property
    def alpha(self) -> float:
        """LoRA's alpha at that rank."""
        return float(self.config.lora_alpha)


def place(
    selection: Selection, source: ModelSource, settings: TrainSettings, wanted: Wanted | None = None
) -> Placement:
    """Resolve a selection to the modules of its model.

    Args:
        settings: rank, alpha, dropout, target modules, ranks by module and options of LoRA; the rest is not read.
        wanted: modules that a trainer's config names, instead of the settings'.

    Raises:
        LayersiftError: the model's configuration cannot be read, it has no such blocks, or nothing to adapt in one.
        AdapterError: the modules that are wanted are not all there in the chosen layers.
    """
    kind = selection.data.kind
    model = empty_model(source, kind)
    stack, layers = selection.stack(model), selection.selected_layers
    if wanted is not None:
        options = wanted.peft_options(model, [stack.block_path(layer) for layer in layers])
        settings = replace(settings, method_options={**settings.method_options, **options})
    config = selection.config_for(model, adapter_config(settings, kind or "text", 1), settings.ranks)
    targets, start = resolve_targets(model, stack, layers, config)
    if wanted is not None:
        wanted.require_all(model, targets)
    if settings.method_options.get("rank_pattern") or settings.method_options.get("alpha_pattern"):
        return _placement(selection, model, config, targets, derive_config(model, targets, start), {})
    # Else nobody but with_ranks has set a pattern: each is a module's full name.
    ranks = {name: int(config.rank_pattern.get(re.escape(name), config.r)) for name in targets.modules}
    common = _most_common(list(ranks.values()), settings.rank)
    by_root = bool(config.use_rslora)
    alpha = alpha_at_rank(settings.alpha, settings.rank, common, by_root)
    derived = derive_config(model, targets, start)
    derived.r, derived.lora_alpha = common, int(alpha) if alpha == int(alpha) else alpha
    others = {name: rank for name, rank in ranks.items() if rank != common}
    derived.rank_pattern = {re.escape(name): rank for name, rank in others.items()}
    derived.alpha_pattern = {
        re.escape(name): alpha_at_rank(derived.lora_alpha, common, rank, by_root) for name, rank in others.items()
    }
    return _placement(selection, model, config, targets, derived, others)


def _placement(
    selection: Selection, model: nn.Module, config: Any, targets: Targets, derived: Any, ranks: dict[str, int]
) -> Placement:
    """With what is counted and tried out on the model without weights.

    Args:
        config: that the targets were resolved by; ``derived`` adapts exactly these.
    """
    stack, layers = targets.stack, targets.layers
    names = [name for name, _ in model.named_modules()]
    return Placement(
        selection=selection,
        config=derived,
        modules=targets.modules,
        parameters=targets.parameters,
        ranks=ranks,
        by_names=_by_names(model, targets, derived),
        inside_others=tuple(n for n in names if n not in targets.modules and any(t in n for t in targets.modules)),
        trained=sum(trained_by_layer(model, stack, layers, config) or []),
    )


def _most_common(ranks: list[int], asked: int) -> int:
    """The rank that needs no pattern: the one asked for where a module has it, else that of most modules."""
    if asked in ranks or not ranks:
        return asked
    counted = Counter(ranks)
    return min(counted, key=lambda rank: (-counted[rank], rank))


def _by_names(model: nn.Module, targets: Targets, derived: Any) -> bool:
    """Whether a list of full names is enough: PEFT makes other targets of it in some mixtures of experts."""
    from peft import get_peft_model

    named = copy.deepcopy(derived)
    named.target_modules, named.target_parameters = list(targets.modules), list(targets.parameters) or None
    named.layers_to_transform = named.layers_pattern = named.task_type = None
    try:
        verify(get_peft_model(without_weights(model), named, low_cpu_mem_usage=True), targets)
    except (AdapterError, ValueError):
        return False
    return True
