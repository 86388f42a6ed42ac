"""Choose the layers to adapt: the most important ones, by what each does to the user's own data."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from layersift.errors import DataError, SelectionError
from layersift.load.blocks import BlockStack, choose_stack, find_stacks
from layersift.provenance import command, versions
from layersift.score.base import Criterion, LayerScores, side_by_side
from layersift.score.eva import EVA
from layersift.score.pilot import PILOT
from layersift.score.stability import Stability, Stop, stability, until_stable
from layersift.score.subject import Subject, score_layers
from layersift.score.table import BOTTOM, find_criterion
from layersift.select.afford import What, affordable, parse_objective
from layersift.select.budget import parameter_count, within_budget
from layersift.select.paper import PUBLISHED, published_choice, published_position
from layersift.select.sample import Sample, default_position
from layersift.select.selection import Selection
from layersift.select.settings import FEWEST_SAMPLES, SelectSettings, how_many

if TYPE_CHECKING:
    from peft import PeftConfig


PLANNED_BATCH = 8  # samples; the shares hardly depend on it


def select(
    model: Any,
    sample: Sample,
    settings: SelectSettings,
    *,
    padding: int = 0,
    name: str = "",
    revision: str = "",
    layer_costs: Sequence[int] = (),
    adapter: PeftConfig | None = None,
    criterion: Criterion | None = None,
    progress: Callable[[int], None] | None = None,
) -> Selection:
    """Represent the sample, score the layers, choose.

    Args:
        layer_costs: trained parameters of each layer, which a budget is counted in.
        adapter: whose target modules criteria that train adapt.
        criterion: instead of the settings' one, which is a name.

    Raises:
        DataError: too few samples, or a sample without a token at the position.
        ModelError: the model has no stack of blocks, or one that cannot be read.
        SelectionError: the settings do not fit the number of layers, or no layer has an importance.
    """
    if len(sample.examples) < FEWEST_SAMPLES:
        raise DataError(f"{len(sample.examples)} samples; at least {FEWEST_SAMPLES} are needed")
    stack = choose_stack(find_stacks(model), settings.tower)
    count = how_many(settings, stack.num_layers)
    published = settings.compat == "paper"
    if published and stack.joined:
        raise SelectionError("--compat paper knows one stack of blocks; name one tower")
    criterion = PUBLISHED if published else criterion or find_criterion(settings.criterion)
    subjects = [
        subject_of(
            model,
            part,
            sample,
            settings,
            padding,
            progress=progress if part is stack.parts[-1] else None,
            adapter=adapter,
            count=count,
        )
        for part in stack.parts
    ]
    _check_fits(criterion, settings, stack)
    started = time.perf_counter()
    stop = None
    if settings.until_stable is not None:
        subjects, stop = _until_stable(criterion, subjects, count, settings.until_stable)
    scores = side_by_side([score_layers(criterion, subject) for subject in subjects])
    seconds = time.perf_counter() - started
    positions = [criterion.position or subject.position for subject in subjects] if criterion.reads_states else []

    def choose(n: int) -> tuple[int, ...]:
        return published_choice(stack, scores, n) if published else top_layers(scores, n)

    limit, chosen = "", None
    if settings.objective is not None:
        objective = parse_objective(settings.objective)
        chosen = affordable(
            scores,
            _cost(model, stack, sample, adapter, objective.what),
            objective.share,
            len(set(stack.block_classes)) == 1,
        )
        count = len(chosen)
        limit = f", the most important within {objective.share:g} of the {objective.what} of all"
    elif settings.threshold is not None:
        count = _some_beyond(scores, settings.threshold)
        limit = f", those that score beyond {settings.threshold}"
    elif count is None:
        budget = parameter_count(settings.budget_params or 0)
        count = within_budget(choose, layer_costs, budget)
        limit = f" within {budget:,} trained parameters"
    started = time.perf_counter()
    sure = None
    if len(subjects) == 1 and not published:
        sure = stability(criterion, subjects[0], count, threshold=settings.threshold)
    resampled = time.perf_counter() - started
    return Selection(
        model=name,
        model_revision=revision,
        tower=stack.tower,
        block_pattern=stack.pattern,
        num_layers=stack.num_layers,
        importance=scores.importance,
        undefined=scores.undefined,
        ranking=scores.ranking,
        selected_layers=chosen or choose(count),
        rule=f"top {count} of {stack.num_layers}{limit}" + _rule_suffix(settings, stack, scores, count),
        position="+".join(dict.fromkeys(positions)),
        metric=criterion.name,
        num_samples=scores.num_samples,
        seed=settings.seed,
        data=sample.data,
        top_dimension_share=scores.top_dimension_share,
        seconds={"score": round(seconds, 3), "resample": round(resampled, 3)},
        versions=versions(),
        command=command(),
        compat=settings.compat,
        interval=_pairs(sure) if sure else None,
        # What an objective can afford is not the top of the ranking.
        membership=sure.membership if sure and settings.objective is None else None,
        confidence=sure.confidence if sure else None,
        until_stable=asdict(stop) if stop else None,
    )


def _check_fits(criterion: Criterion, settings: SelectSettings, stack: BlockStack) -> None:
    """Refuse criteria whose scores do not mean what would be made of them."""
    if stack.joined and (criterion.needs in ("nothing", "weights", "training") or criterion is EVA):
        raise SelectionError(f"{criterion.name} ranks the layers of one stack of blocks; name one tower")
    open_count = settings.budget_params is not None or settings.threshold is not None or settings.objective is not None
    if criterion.name.removeprefix(BOTTOM) == PILOT.name and open_count:
        raise SelectionError("pilot tries subsets of one size; give it a number of layers: ratio or top-n")


def _cost(
    model: Any, stack: BlockStack, sample: Sample, adapter: PeftConfig | None, what: What
) -> Callable[[tuple[int, ...]], float]:
    """Operations or bytes of a training step on samples as long as these."""
    from peft import LoraConfig

    from layersift.train.plan import plan

    if stack.joined:
        raise SelectionError("objective knows one stack of blocks; name one tower")
    tokens = max(1, round(sum(map(len, sample.examples)) / len(sample.examples)))

    @functools.cache
    def cost(layers: tuple[int, ...]) -> float:
        found = plan(
            model, stack, layers, adapter or LoraConfig(), sample.kind, batch_size=PLANNED_BATCH, tokens=tokens
        )
        return found.flops if what == "time" else found.memory_bytes

    return cost


def _pairs(sure: Stability) -> tuple[tuple[float, float] | None, ...]:
    return tuple(
        None if low is None or high is None else (low, high) for low, high in zip(sure.low, sure.high, strict=True)
    )


def _until_stable(
    criterion: Criterion, subjects: Sequence[Subject], count: int | None, confidence: float
) -> tuple[list[Subject], Stop]:
    if len(subjects) > 1:
        raise SelectionError("until-stable knows one stack of blocks; name one tower")
    if count is None:
        raise SelectionError("until-stable needs a number of layers: ratio or top-n")
    subject, _, stop = until_stable(criterion, subjects[0], count, confidence)
    return [subject], stop


def subject_of(
    model: Any,
    part: BlockStack,
    sample: Sample,
    settings: SelectSettings,
    padding: int = 0,
    *,
    progress: Callable[[int], None] | None = None,
    adapter: PeftConfig | None = None,
    count: int | None = None,
) -> Subject:
    """What criteria look at, for one stack of blocks, of which ``count`` are going to be chosen, or half."""
    fallback = published_position(part) if settings.compat == "paper" else default_position(sample.kind, part)
    return Subject(
        model=model,
        stack=part,
        examples=sample.examples,
        kind=sample.kind,
        position=settings.position or fallback,
        pad_id=padding,
        seed=settings.seed,
        count=min(part.num_layers, count or max(1, part.num_layers // 2)),
        adapter=adapter,
        probe_steps=settings.probe_steps,
        progress=progress,
        post_norm_last=settings.compat == "paper",
    )


def _rule_suffix(settings: SelectSettings, stack: BlockStack, scores: LayerScores, count: int) -> str:
    if settings.compat:
        return ", the first in the ranking left out" if stack.tower == "encoder" else ""
    extra = count - len(scores.ranking)
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
