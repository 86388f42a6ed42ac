"""From scores to layers (so many, those beyond a threshold, as many as can be afforded), baselines, and the record."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layersift.config.quantities import What, mask_of, parameter_count, parse_objective
from layersift.config.select import SelectSettings
from layersift.config.variants import parse_variant
from layersift.data.examples import image_of
from layersift.errors import SelectionError
from layersift.models.load import LoadedModel
from layersift.models.stacks import BlockStack
from layersift.provenance import command, versions
from layersift.records.selection import LayerScores, Selection
from layersift.select.afford import choose_affordable, count_within_budget
from layersift.select.published import published_choice
from layersift.select.sample import Sample

if TYPE_CHECKING:
    from peft import PeftConfig

PLANNED_BATCH = 8  # samples; the shares hardly depend on it
Cost = Callable[[tuple[int, ...]], float]  # of training some layers


@dataclass(frozen=True)
class Chosen:
    """The layers, and how the ranking became them, in words."""

    layers: tuple[int, ...]  # ascending
    rule: str


def choose_layers(
    scores: LayerScores,
    settings: SelectSettings,
    stack: BlockStack,
    count: int | None,
    layer_costs: Sequence[int],
    step_cost: Callable[[What], Cost],
) -> Chosen:
    """The layers that the settings ask for.

    Args:
        count: N, where it is known already.
        layer_costs: trained parameters of each layer, which a budget is counted in.
        step_cost: what a step costs in time or memory, which an objective is counted in.

    Raises:
        SelectionError: no layer has a score, none is beyond the threshold, or none can be afforded.
    """

    def top(n: int) -> tuple[int, ...]:
        return published_choice(stack, scores, n) if settings.compat == "paper" else top_layers(scores, n)

    if settings.objective is not None:
        objective = parse_objective(settings.objective)
        layers = choose_affordable(scores, step_cost(objective.what), objective.share)
        limit = f", the most important within {objective.share:g} of the {objective.what} of all"
    elif settings.threshold is not None:
        layers = top(_some_beyond(scores, settings.threshold))
        limit = f", those that score beyond {settings.threshold}"
    elif count is None:
        budget = parameter_count(settings.budget_params or 0)
        layers = top(count_within_budget(top, layer_costs, budget))
        limit = f" within {budget:,} trained parameters"
    else:
        layers, limit = top(count), ""
    return Chosen(layers, f"top {len(layers)} of {stack.num_layers}{limit}{_suffix(settings, stack, scores, layers)}")


def _suffix(settings: SelectSettings, stack: BlockStack, scores: LayerScores, layers: Sequence[int]) -> str:
    if settings.compat:
        return ", the first in the ranking left out" if stack.tower == "encoder" else ""
    extra = len(layers) - len(scores.ranking)
    return f", {extra} of them without an importance, lowest first" if extra > 0 else ""


def top_layers(scores: LayerScores, count: int) -> tuple[int, ...]:
    """The first ``count`` layers of the ranking, ascending. Where too few have a score, the lowest others fill up.

    Raises:
        SelectionError: no layer has a score.
    """
    if not scores.ranking:
        why = next(iter(scores.undefined.values()))
        raise SelectionError(f"no layer has an importance ({why}); choose another position or other data")
    return scores.top(count)


def _some_beyond(scores: LayerScores, threshold: float) -> int:
    """How many layers score beyond a threshold.

    Raises:
        SelectionError: none.
    """
    count = len(scores.beyond(threshold))
    if not count:
        best = f"{scores.importance[scores.ranking[0]]:.4g}" if scores.ranking else "none"
        raise SelectionError(f"threshold {threshold}: no layer scores beyond it; the first one's score is {best}")
    return count


def planned_cost(model: Any, stack: BlockStack, sample: Sample, adapter: PeftConfig | None, what: What) -> Cost:
    """Operations or bytes of a training step on samples as long as these.

    Raises:
        SelectionError: the stack is several joined.
    """
    from peft import LoraConfig

    from layersift.plan.planner import Planner  # with PEFT, which ranking layers does without
    from layersift.plan.training import StepSize

    if stack.joined:
        raise SelectionError("objective knows one stack of blocks; name one tower")
    tokens = max(1, round(sum(map(len, sample.examples)) / len(sample.examples)))
    size = StepSize(sample.kind, PLANNED_BATCH, tokens, image=image_of(sample.examples))

    planner = Planner(model, stack, adapter or LoraConfig())

    def cost(layers: tuple[int, ...]) -> float:
        plan = planner.step(layers, size)
        return plan.flops if what == "time" else plan.memory_bytes

    return cost


def variant_mask(variant: str, num_layers: int, count: int, ranking: Sequence[int] = ()) -> str:
    """The mask (num_layers digits) of ``all``, ``first``, ``last``, ``top-N``, ``NAME=MASK`` or ``NAME=LAYERS``.

    ``top-N`` are the first N of the ranking, filled up with the lowest layers where the ranking is shorter.

    Args:
        count: how many layers ``first`` and ``last`` have.

    Raises:
        SelectionError: a mask of another length, or a layer or an N beyond the number of layers.
    """
    parsed = parse_variant(variant, num_layers)
    if parsed.mask is not None:
        return parsed.mask
    if parsed.top is not None:
        rest = [i for i in range(num_layers) if i not in ranking]
        return mask_of([*ranking, *rest][: parsed.top], num_layers)
    layers = {"all": range(num_layers), "first": range(count), "last": range(num_layers - count, num_layers)}
    return mask_of(layers[variant], num_layers)


def draw_masks(num_layers: int, size: int, draws: int, seed: int, excluded: Collection[str] = ()) -> tuple[str, ...]:
    """Different masks of ``size`` layers, drawn by the seed: ``draws`` of them, or as many as there are.

    Args:
        excluded: masks of other rows. They are drawn only where no others of this size remain.
    """
    barred = {mask for mask in excluded if len(mask) == num_layers and mask.count("1") == size}
    total = math.comb(num_layers, size)
    if len(barred) == total:
        barred = set()
    generator = np.random.default_rng(seed)
    drawn: dict[str, None] = {}
    while len(drawn) < min(draws, total - len(barred)):
        mask = mask_of(sorted(generator.choice(num_layers, size, replace=False).tolist()), num_layers)
        if mask not in barred:
            drawn[mask] = None
    return tuple(drawn)


def record_choice(
    loaded: LoadedModel,
    stack: BlockStack,
    sample: Sample,
    settings: SelectSettings,
    scores: LayerScores,
    chosen: Chosen,
    position: str = "",
    **more: Any,
) -> Selection:
    """The selection of ``chosen`` by ``scores``; ``more`` are further fields of it."""
    return Selection(
        model=loaded.name,
        model_revision=loaded.revision,
        tower=stack.tower,
        block_pattern=stack.pattern,
        num_layers=stack.num_layers,
        importance=scores.importance,
        undefined=scores.undefined,
        ranking=scores.ranking,
        selected_layers=chosen.layers,
        rule=chosen.rule,
        position=position,
        metric=scores.criterion,
        num_samples=scores.num_samples,
        seed=settings.seed,
        data=sample.data,
        top_dimension_share=scores.top_dimension_share,
        versions=versions(),
        command=command(),
        **more,
    )
