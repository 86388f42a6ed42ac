"""Modules and their ranks within a budget: the energy of the mean gradient that adapters can follow, by knapsack.

Every further rank of a module follows the next direction of its mean gradient, at the price of a row and a column.
Their energies fall, so that what gives the most a parameter is taken first (Dantzig's rule, exact but for the last
pieces that no longer fit). What a step costs in time or memory depends on the lowest layer that is adapted and hardly
on what else is: with an objective, the cut is the lowest that is affordable.

Spectrum takes of each kind of module the share whose weights have the most signal (2406.06623).
"""

from __future__ import annotations

import copy
import heapq
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from layersift.adapt.methods import only_modules
from layersift.adapt.targets import layer_costs, resolve_targets
from layersift.config.quantities import What, parameter_count, parse_objective
from layersift.config.select import SelectSettings
from layersift.errors import AdapterError, SelectionError
from layersift.models.load import LoadedModel
from layersift.models.stacks import BlockStack
from layersift.records.reading import DataRecord
from layersift.records.selection import LayerScores, Selection, make_selection
from layersift.score.criteria.spectrum import signal_to_noise
from layersift.score.gradients import DIRECTIONS, module_energies
from layersift.score.weights import linear_maps, weight_of
from layersift.select.layers import Chosen, Cost, planned_cost, record_choice
from layersift.select.sample import Sample, scoring_contexts

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


log = logging.getLogger(__name__)
MOST = 2  # times the rank that was asked for, as a module's rank
Energies = Mapping[tuple[int, str], Sequence[float]]  # by layer and name within its block, the largest first


@dataclass(frozen=True)
class ChosenModules:
    """Ranks by layer and name within its block, and how they were found, in words."""

    ranks: dict[int, dict[str, int]]
    rule: str


def allot_ranks(
    energies: Energies, prices: Mapping[tuple[int, str], float], budget: float
) -> dict[tuple[int, str], int]:
    """How many directions of each module are followed, so that the energies are together the most for a budget.

    Args:
        prices: of one direction of each module.
    """
    taken: dict[tuple[int, str], int] = {}
    waiting = [(-of[0] / prices[key], key, 0) for key, of in energies.items() if of and of[0] > 0]
    heapq.heapify(waiting)
    left = budget
    while waiting:
        _, key, place = heapq.heappop(waiting)
        if prices[key] > left:
            continue  # a cheaper one may still fit
        taken[key], left = place + 1, left - prices[key]
        following = energies[key][place + 1 :]
        if following and following[0] > 0:
            heapq.heappush(waiting, (-following[0] / prices[key], key, place + 1))
    return taken


def choose_modules(
    model: nn.Module,
    stack: BlockStack,
    energies: Energies,
    adapter: PeftConfig,
    settings: SelectSettings,
    step_cost: Callable[[What], Cost],
) -> ChosenModules:
    """The modules of ``adapter``'s targets that are adapted, with ranks up to twice its own.

    Args:
        step_cost: what a step costs in time or memory, which an objective is counted in.

    Raises:
        SelectionError: not one module fits.
        AdapterError: the method has no ranks by module, or adapts what no gradient was read of.
    """
    config: Any = copy.copy(adapter)
    if getattr(config, "target_modules", None) is None:
        config.target_modules = "all-linear"  # among which there is something to choose
    if not hasattr(config, "rank_pattern"):
        raise AdapterError(f"{type(config).__name__} has one rank for all modules; choose whole layers")
    layers = range(stack.num_layers)
    lowest, limits = 0, []
    if settings.objective is not None:
        objective = parse_objective(settings.objective)
        lowest = lowest_affordable(stack.num_layers, step_cost(objective.what), objective.share)
        limits.append(f"layers from {lowest} on ({objective.share:g} of the {objective.what} of all)")
    targets, _ = resolve_targets(model, stack, layers, config)
    targeted = [(layer, name) for layer in layers for name in targets.leaves(layer)]
    known = [key for key in targeted if key in energies]
    unread = [name for layer, name in targeted if (layer, name) not in energies]
    if unread or targets.parameters:
        names = ", ".join(dict.fromkeys([*unread, *(p.rpartition(".")[2] for p in targets.parameters)]))
        log.warning("no gradient was read of %s, which therefore carry no adapter", names)
    if not known:
        raise AdapterError("no gradient was read of any module that the method adapts; choose whole layers")
    most = MOST * config.r
    unit = -(-most // DIRECTIONS)  # ranks that one direction stands for
    prices = {
        key: float(unit * parameters_per_rank(model.get_submodule(f"{stack.block_path(key[0])}.{key[1]}")))
        for key in known
    }
    allowed = {key: energies[key][: -(-most // unit)] for key in known if key[0] >= lowest}
    if settings.budget_params is not None:
        budget = parameter_count(settings.budget_params)
    else:  # as many as all of these at the rank that was asked for
        budget = round(sum(prices[key] for key in allowed) * config.r / unit)
    limits.insert(0, f"{budget:,} trained parameters")
    taken = allot_ranks(allowed, prices, budget)
    while taken:
        ranks = _by_layer({key: min(most, count * unit) for key, count in taken.items()})
        if sum(layer_costs(model, stack, only_modules(model, stack, config, ranks), sorted(ranks))) <= budget:
            return ChosenModules(ranks, f"{len(taken)} modules within {', '.join(limits)}")
        worst = min(taken, key=lambda key: energies[key][taken[key] - 1] / prices[key])  # DoRA's kind has more
        taken[worst] -= 1
        taken = {key: count for key, count in taken.items() if count}
    raise SelectionError(
        f"budget-params {budget:,} is less than the cheapest module costs: {min(prices.values()):,.0f}"
    )


def lowest_affordable(num_layers: int, cost: Cost, share: float) -> int:
    """The lowest layer from which on all can be trained within a share of the cost of all.

    Raises:
        SelectionError: not even the last one can.
    """
    whole = cost(tuple(range(num_layers)))
    for lowest in range(num_layers):
        if cost(tuple(range(lowest, num_layers))) <= share * whole * (1 + 1e-9):
            return lowest
    last = cost((num_layers - 1,)) / whole
    raise SelectionError(f"not one layer can be trained within {share:g} of the cost of all; the last takes {last:.2f}")


def parameters_per_rank(module: nn.Module) -> int:
    """Parameters of one rank: a row and a column."""
    inside, outside = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if inside is None or outside is None:
        weight: Any = module.weight
        outside, inside = weight.shape  # GPT-2's map, either way round
    return int(inside) + int(outside)


def _by_layer(ranks: Mapping[tuple[int, str], int]) -> dict[int, dict[str, int]]:
    by_layer: dict[int, dict[str, int]] = {}
    for (layer, name), rank in sorted(ranks.items()):
        by_layer.setdefault(layer, {})[name] = rank
    return by_layer


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
    (context,) = scoring_contexts(loaded, stack, sample, settings, adapter=adapter, progress=progress)
    started = time.perf_counter()
    energies = module_energies(context.gradients())
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
    return record_choice(
        loaded, stack, sample, settings, scores, whole, seconds={"score": scores.seconds}, modules=chosen.ranks
    )


Module = tuple[int, str]  # layer, and name within its block


def top_modules(model: nn.Module, stack: BlockStack, share: float) -> list[Module]:
    """Of the linear maps of each kind, by their name within the block, those of the highest signal-to-noise ratio.

    Args:
        share: of each kind, above 0 and up to 1; one of each is taken at least.

    Raises:
        SelectionError: a share out of range, or no linear map whose singular values are finite.
        ModelError: weights that are packed and cannot be unpacked.
    """
    if not 0 < share <= 1:
        raise SelectionError(f"spectrum {share:g} is out of range; above 0 and up to 1 is possible")
    ratios: dict[str, dict[int, float]] = defaultdict(dict)
    for layer, name, module in linear_maps(model, stack):
        weight = weight_of(module)
        if weight.ndim == 2 and min(weight.shape) > 1 and bool(torch.isfinite(weight).all()):
            ratio = signal_to_noise(weight.double() if weight.device.type == "cpu" else weight.float())
            if math.isfinite(ratio):
                ratios[name][layer] = ratio
    if not ratios:
        raise SelectionError("spectrum: the blocks hold no linear map whose singular values can be read")
    chosen: list[Module] = []
    for name, of in ratios.items():
        ordered = sorted(of, key=lambda layer: (-of[layer], layer))
        chosen += [(layer, name) for layer in ordered[: max(1, round(share * len(ordered)))]]
    return sorted(chosen)


def spectrum_selection(loaded: LoadedModel, stack: BlockStack, share: float, rank: int) -> Selection:
    """These modules as a selection, whose adapters all have one rank.

    Raises:
        SelectionError, ModelError: see :func:`top_modules`.
    """
    modules: dict[int, dict[str, int]] = defaultdict(dict)
    for layer, name in top_modules(loaded.model, stack, share):
        modules[layer][name] = rank
    rule = f"of each kind of module the top {share:.4g} by signal-to-noise ratio (Spectrum)"
    plain = make_selection(loaded.name, loaded.revision, stack, sorted(modules), DataRecord(), rule)
    return replace(plain, modules=dict(modules))


def parameter_names(model: nn.Module, selection: Selection) -> list[str]:
    """The weights and biases of a selection's modules, by their full names."""
    stack = selection.stack(model)
    modules = selection.modules or {}
    inside = [f"{stack.block_path(layer)}.{name}" for layer, of in sorted(modules.items()) for name in of]
    return [f"{path}.{name}" for path in inside for name, _ in model.get_submodule(path).named_parameters()]
