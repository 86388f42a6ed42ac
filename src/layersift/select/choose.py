"""Choose the layers to adapt: how many, what each does to the user's own data, which ones, and the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from layersift.config.select import FEWEST_SAMPLES, SelectSettings, how_many
from layersift.errors import DataError, SelectionError
from layersift.models.load import LoadedModel
from layersift.models.source import require_finite_weights
from layersift.models.stacks import find_stack
from layersift.records.selection import Interval, Selection, Stop, side_by_side
from layersift.score.context import ScoringContext
from layersift.score.criterion import Criterion, score_layers
from layersift.score.registry import Named
from layersift.score.stability import Stability, measure_stability, until_stable
from layersift.select.layers import choose_layers, planned_cost, record_choice
from layersift.select.modules import select_modules
from layersift.select.sample import Sample, criterion_of, require_fitting, scoring_contexts

if TYPE_CHECKING:
    from peft import PeftConfig


def select(
    loaded: LoadedModel,
    sample: Sample,
    settings: SelectSettings,
    *,
    layer_costs: Sequence[int] = (),
    adapter: PeftConfig | None = None,
    criterion: Named | None = None,
    progress: Callable[[int], None] | None = None,
) -> Selection:
    """Represent the sample, score the layers, choose.

    Args:
        layer_costs: trained parameters of each layer, which a budget is counted in.
        adapter: whose target modules criteria that train adapt, and whose steps an objective counts.
        criterion: instead of the settings' one, which is a name.

    Raises:
        DataError: too few samples, or a sample without a token at the position.
        ModelError: the model has no stack of blocks, or one that cannot be read.
        SelectionError: the settings do not fit the number of layers, or no layer has an importance.
    """
    if len(sample.examples) < FEWEST_SAMPLES:
        raise DataError(f"{len(sample.examples)} samples; at least {FEWEST_SAMPLES} are needed")
    require_finite_weights(loaded.model, repr(loaded.name))
    stack = find_stack(loaded.model, settings.tower)
    if settings.modules:
        return select_modules(loaded, stack, sample, settings, adapter, progress)
    count = how_many(settings, stack.num_layers)
    rule = criterion_of(settings, criterion)
    require_fitting(rule, settings, stack)
    contexts = scoring_contexts(loaded, stack, sample, settings, adapter=adapter, count=count, progress=progress)

    started = time.perf_counter()
    contexts, stop = _until_stable(rule, contexts, count, settings.until_stable)
    scores = side_by_side([score_layers(rule, context) for context in contexts])
    scored = time.perf_counter()
    if not scores.ranking:
        why = "; ".join(dict.fromkeys(scores.undefined.values()))
        raise SelectionError(
            f"{loaded.name} on {sample.data.source or 'these data'}: no layer has an importance ({why[:160]}); choose "
            "another position or other data"
        )
    chosen = choose_layers(
        scores,
        settings,
        stack,
        count,
        layer_costs,
        lambda what: planned_cost(loaded.model, stack, sample, adapter, what),
    )
    resampling = time.perf_counter()
    sure = _how_sure(rule, contexts, settings, len(chosen.layers))
    seconds = {"score": round(scored - started, 3), "resample": round(time.perf_counter() - resampling, 3)}
    return record_choice(
        loaded,
        stack,
        sample,
        settings,
        scores,
        chosen,
        position=_positions(rule, contexts),
        seconds=seconds,
        compat=settings.compat,
        interval=_pairs(sure) if sure else None,
        # What an objective can afford is not the top of the ranking.
        membership=sure.membership if sure and settings.objective is None else None,
        confidence=sure.confidence if sure else None,
        resampled=sure.samples if sure and sure.samples < scores.num_samples else None,
        until_stable=stop,
    )


def _until_stable(
    criterion: Criterion, contexts: list[ScoringContext], count: int | None, confidence: float | None
) -> tuple[list[ScoringContext], Stop | None]:
    """The contexts with as many samples as the selection needs to be decided, where that is asked for."""
    if confidence is None:
        return contexts, None
    if len(contexts) > 1:
        raise SelectionError("until-stable knows one stack of blocks; name one tower")
    if count is None:
        raise SelectionError("until-stable needs a number of layers: ratio or top-n")
    context, _, stop = until_stable(criterion, contexts[0], count, confidence)
    return [context], stop


def _how_sure(
    criterion: Criterion, contexts: Sequence[ScoringContext], settings: SelectSettings, count: int
) -> Stability | None:
    if len(contexts) > 1 or settings.compat == "paper":
        return None
    return measure_stability(criterion, contexts[0], count, threshold=settings.threshold)


def _positions(criterion: Criterion, contexts: Sequence[ScoringContext]) -> str:
    """Where the criterion has read, if it reads representations."""
    read = [criterion.position or context.position for context in contexts] if criterion.reads_states else []
    return "+".join(dict.fromkeys(read))


def _pairs(sure: Stability) -> tuple[Interval | None, ...]:
    return tuple(
        None if low is None or high is None else (low, high) for low, high in zip(sure.low, sure.high, strict=True)
    )
