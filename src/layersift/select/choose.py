"""Choose the layers to adapt: the most important ones, by what each does to the user's own data."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from layersift.errors import DataError, SelectionError, unknown_name
from layersift.load.blocks import BlockStack, choose_stack, find_stacks
from layersift.load.data import Columns, Table, TaskKind, class_names, require_rows, table_of
from layersift.load.encode import Encoder, encode_rows, random_order
from layersift.load.examples import Example
from layersift.load.loader import examples_of_loader
from layersift.load.models import pad_id
from layersift.load.rows import rows_of_dataset
from layersift.provenance import command, versions
from layersift.represent.positions import get_position
from layersift.score.base import Criterion, LayerScores, side_by_side
from layersift.score.stability import Stability, Stop, stability, until_stable
from layersift.score.subject import PROBE_STEPS, Subject, score_layers
from layersift.score.table import Named, find_criterion
from layersift.select.afford import What, affordable, parse_objective
from layersift.select.budget import parameter_count, within_budget
from layersift.select.paper import PUBLISHED, published_choice, published_examples, published_position
from layersift.select.selection import Compat, Selection

if TYPE_CHECKING:
    from peft import PeftConfig

DEFAULT_RATIO = 0.5
PLANNED_BATCH = 8  # samples; the shares hardly depend on it
MAX_SAMPLES = 128
FEWEST_SAMPLES = 8

# Towers that read what is to be written.
TOWERS_WITH_RESPONSE = ("language", "decoder")


def default_position(kind: TaskKind, stack: BlockStack) -> str:
    """The mean over the tokens that bear the loss where the stack reads them, else over all tokens.

    That leaves out the first token of a text, on which decoders put activations so large that nothing else counts.
    docs/method.md gives the evidence: the choice of position changes a selection more than anything else, and the
    mean over the tokens that the task is about did best on short runs, without the artefact of a constant token.
    """
    reads_response = kind in ("instruction", "text")
    found = ["response-mean" if reads_response and p.tower in TOWERS_WITH_RESPONSE else "mean" for p in stack.parts]
    return "+".join(dict.fromkeys(found))


@dataclass(frozen=True)
class SelectSettings:
    """How layers are chosen: by ``ratio``, ``top_n``, ``budget_params``, ``threshold`` or ``objective``; else half."""

    ratio: float | None = None
    top_n: int | None = None
    position: str | None = None  # None: by the kind of task
    criterion: str = "cka"  # see `layersift.score.table`
    max_samples: int = MAX_SAMPLES
    seed: int = 0
    tower: str | None = None
    compat: Compat | None = None
    budget_params: str | int | None = None  # trained parameters: 2000000, or 2M
    threshold: float | None = None  # every layer that scores beyond it
    probe_steps: int = PROBE_STEPS  # optimizer steps for criteria that train
    objective: str | None = None  # time=SHARE or memory=SHARE: the most important layers within it of all layers' cost
    until_stable: float | None = None  # stop reading samples once the selection is decided with this confidence

    def __post_init__(self) -> None:
        limits = (self.ratio, self.top_n, self.budget_params, self.threshold, self.objective)
        if sum(given is not None for given in limits) > 1:
            raise SelectionError("give one of ratio, top-n, budget-params, threshold and objective")
        if self.objective is not None:
            parse_objective(self.objective)
        if self.budget_params is not None:
            parameter_count(self.budget_params)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise SelectionError(f"ratio {self.ratio} is out of range; it must be above 0 and at most 1")
        if self.top_n is not None and self.top_n < 1:
            raise SelectionError(f"top-n {self.top_n} is out of range; it must be at least 1")
        if self.max_samples < FEWEST_SAMPLES:
            raise SelectionError(f"max-samples {self.max_samples} is too few; at least {FEWEST_SAMPLES} are needed")
        self._check_compat()
        if self.probe_steps < 1:
            raise SelectionError(f"probe-steps {self.probe_steps} is out of range; it must be at least 1")
        if self.until_stable is not None and not 0.5 < self.until_stable < 1:
            raise SelectionError(f"until-stable {self.until_stable} is out of range; above 0.5 and below 1 is possible")
        find_criterion(self.criterion)
        if self.position is not None:
            get_position(self.position)

    def _check_compat(self) -> None:
        if self.compat not in (None, "paper"):
            raise unknown_name("compatibility", str(self.compat), ["paper"])
        if self.compat and self.position:
            raise SelectionError("--compat paper fixes the token position; leave --position away")
        if self.compat and self.until_stable is not None:
            raise SelectionError("--compat paper reads the published samples, all of them; leave --until-stable away")


def how_many(settings: SelectSettings, num_layers: int) -> int | None:
    """N: ``top_n``, or floor(ratio x M); None where it depends on the scores, or on what the layers cost.

    Raises:
        SelectionError: it would be none of the layers, or more than there are.
    """
    if any(given is not None for given in (settings.budget_params, settings.threshold, settings.objective)):
        return None
    if settings.top_n is not None:
        if settings.top_n > num_layers:
            raise SelectionError(f"top-n {settings.top_n} is more than the {num_layers} layers there are")
        return settings.top_n
    ratio = DEFAULT_RATIO if settings.ratio is None else settings.ratio
    count = math.floor(ratio * num_layers + 1e-9)  # 0.29 x 100 is 28.999... in floating point
    if count == 0:
        raise SelectionError(f"ratio {ratio} of {num_layers} layers is less than one layer")
    return count


def top_layers(scores: LayerScores, count: int) -> tuple[int, ...]:
    """The first ``count`` layers of the ranking, ascending. Where too few have a score, the lowest others fill up.

    Raises:
        SelectionError: no layer has a score.
    """
    if not scores.ranking:
        why = next(iter(scores.undefined.values()))
        raise SelectionError(f"no layer has an importance ({why}); choose another position or other data")
    return scores.top(count)


def beyond(scores: LayerScores, threshold: float) -> int:
    """How many layers score beyond a threshold, in the criterion's direction.

    Raises:
        SelectionError: none.
    """
    values = [v for v in scores.importance if v is not None]
    count = sum(v > threshold if scores.direction == "high" else v < threshold for v in values)
    if not count:
        best = f"{scores.importance[scores.ranking[0]]:.4g}" if scores.ranking else "none"
        raise SelectionError(f"threshold {threshold}: no layer scores beyond it; the first one's score is {best}")
    return count


@dataclass(frozen=True)
class Sample:
    """What is shown to the model, and what the selection file says of it."""

    examples: tuple[Example, ...]
    kind: TaskKind
    data: dict[str, Any]
    notice: str | None = None  # what the length limit did


def sample_table(table: Table, encoder: Encoder, settings: SelectSettings) -> Sample:
    """A random sample of the table without replacement (a duplicate would bias the estimator), drawn by the seed.

    Raises:
        DataError: the table is too small, or a row cannot be encoded.
    """
    require_rows(table, FEWEST_SAMPLES)
    if settings.compat == "paper":
        examples = published_examples(table, encoder, settings.max_samples)
        return Sample(examples, table.kind, describe(table))
    order = random_order(len(table.rows), settings.seed)
    encoded = encode_rows(table, encoder, order, settings.max_samples)
    return Sample(encoded.examples, table.kind, describe(table), encoded.notice(encoder.limit()))


def describe(table: Table) -> dict[str, Any]:
    """What an artefact records of its data."""
    columns = {part: name for part, name in vars(table.columns).items() if name}
    return {
        "source": table.source,
        "rows": len(table.rows),
        "fingerprint": f"sha256:{table.fingerprint}",
        "kind": table.kind,
        "columns": columns,
    }


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
        )
        for part in stack.parts
    ]
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
        count = beyond(scores, settings.threshold)
        limit = f", those that score beyond {settings.threshold}"
    elif count is None:
        budget = parameter_count(settings.budget_params or 0)
        count = within_budget(choose, layer_costs, budget)
        limit = f" within {budget:,} trained parameters"
    started = time.perf_counter()
    sure = stability(criterion, subjects[0], count) if len(subjects) == 1 and not published else None
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
        membership=sure.membership if sure else None,
        confidence=sure.confidence if sure else None,
        until_stable=asdict(stop) if stop else None,
    )


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
) -> Subject:
    """What criteria look at, for one stack of blocks."""
    fallback = published_position(part) if settings.compat == "paper" else default_position(sample.kind, part)
    return Subject(
        model=model,
        stack=part,
        examples=sample.examples,
        kind=sample.kind,
        position=settings.position or fallback,
        pad_id=padding,
        seed=settings.seed,
        count=min(part.num_layers, how_many(settings, part.num_layers) or max(1, part.num_layers // 2)),
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


def select_layers(
    model: nn.Module,
    data: Any,
    tokenizer: Any = None,
    *,
    ratio: float | None = None,
    top_n: int | None = None,
    budget_params: str | int | None = None,
    adapter: PeftConfig | None = None,
    position: str | None = None,
    criterion: Named = "cka",
    threshold: float | None = None,
    probe_steps: int = PROBE_STEPS,
    objective: str | None = None,
    until_stable: float | None = None,
    max_samples: int = MAX_SAMPLES,
    seed: int = 0,
    tower: str | None = None,
    compat: Compat | None = None,
    task: TaskKind | None = None,
    columns: dict[str, str] | None = None,
    max_length: int = 512,
    chat_template: str | None = None,
    processor: Any = None,
) -> Selection:
    """Choose the layers of ``model`` that should carry adapters for ``data``, from one forward pass.

    Args:
        model: any transformers model, with or without a head; left as it was.
        data: a `datasets.Dataset`, a list of dicts, or a DataLoader (any iterable of batches with ``input_ids``, and
            ``attention_mask`` and ``labels`` where there are some). Batches are taken in the order they come.
        tokenizer: needed unless ``data`` holds batches, or images alone.
        ratio: share of the layers, rounded down; half unless another of these is given.
        top_n: number of layers.
        budget_params: as many layers as adapters of so many parameters (``2_000_000``, ``"2M"``) can be trained in.
        adapter: the PEFT config that a budget is counted for, and whose target modules short trainings adapt.
        position: which tokens stand for a sample: ``first``, ``last``, ``last-content``, ``mean`` or
            ``response-mean``. By default the mean over the response for instruction data, else over all tokens.
        criterion: a name from ``layersift criteria`` (``cka``, ``fisher``, ``cka@last``, ``bottom:cka``), or a
            function that takes a :class:`layersift.score.subject.Subject` and returns a score, or None, a layer.
        threshold: instead of a number of layers, every layer that scores beyond it.
        probe_steps: optimizer steps that criteria which train (``lora-drop``, ``pilot``) may take.
        objective: ``time=0.6`` or ``memory=0.5``: the most important layers within that share of the cost of
            training all of them (with ``adapter``, or LoRA where PEFT puts it).
        until_stable: read samples only until each layer is in or out with this probability, such as 0.95.
        max_samples: drawn at random by ``seed``, without replacement.
        tower: ``encoder``, ``decoder``, ``language`` or ``vision`` where the model has several; ``encoder+decoder`` for
            the layers of both in one ranking.
        compat: ``"paper"`` for exactly the published scripts' selection.
        task: ``classification``, ``regression``, ``instruction`` or ``text``, where the columns leave it open.
        columns: names by role (``text``, ``text_pair``, ``label``, ``prompt``, ``response``, ``messages``, ``image``,
            ``choices``), where they are not the usual ones.
        max_length: longest sequence in tokens; the rest is cut off.
        chat_template: instead of the tokenizer's own.
        processor: reads images, or images and text; needed where ``data`` hold images.

    Raises:
        LayersiftError: the data, the model or a setting cannot be used; the message says what would be right.
    """
    settings = SelectSettings(
        ratio=ratio,
        top_n=top_n,
        position=position,
        criterion=criterion if isinstance(criterion, str) else "cka",
        max_samples=max_samples,
        seed=seed,
        tower=tower,
        compat=compat,
        budget_params=budget_params,
        threshold=threshold,
        probe_steps=probe_steps,
        objective=objective,
        until_stable=until_stable,
    )
    if budget_params is not None and adapter is None:
        raise SelectionError("budget_params needs adapter, the PEFT config that it is counted for")
    if _holds_rows(data):
        if tokenizer is None and processor is None:
            raise DataError("rows need a tokenizer (of images a processor): select_layers(model, data, tokenizer=...)")
        rows = rows_of_dataset(data) if hasattr(data, "to_list") else list(data)
        table = table_of(rows, type(data).__name__, _columns(columns), task)
        classes = class_names(table) if table.kind == "classification" else ()
        seq2seq = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        reader = tokenizer or getattr(processor, "tokenizer", None)
        encoder = Encoder(reader, table.kind, classes, max_length, chat_template, processor, seq2seq)
        sample = sample_table(table, encoder, settings)
    else:
        if compat:
            raise DataError("compat='paper' tokenises rows of text itself; give a dataset instead of batches")
        sample = _sample_of_loader(data, tokenizer, max_samples)
    config = getattr(model, "config", None)
    name = str(getattr(config, "_name_or_path", "") or type(model).__name__)
    revision = str(getattr(config, "_commit_hash", None) or "unknown")
    return select(
        model,
        sample,
        settings,
        padding=pad_id(model, tokenizer),
        name=name,
        revision=revision,
        layer_costs=_costs(model, settings, adapter) if adapter and budget_params is not None else (),
        adapter=adapter,
        criterion=find_criterion(criterion),
    )


def _costs(model: nn.Module, settings: SelectSettings, adapter: PeftConfig) -> Sequence[int]:
    from layersift.adapt.inspection import layer_costs

    return layer_costs(model, choose_stack(find_stacks(model), settings.tower), adapter)


def _holds_rows(data: Any) -> bool:
    """Whether ``data`` is a dataset of rows rather than an iterable of batches."""
    if isinstance(data, dict):
        raise DataError(f"expected rows or batches, got several splits ({', '.join(map(str, data))}); give one of them")
    if hasattr(data, "to_list"):
        return True
    return isinstance(data, list) and (not data or "input_ids" not in data[0])


def _columns(given: dict[str, str] | None) -> Columns:
    try:
        return Columns(**(given or {}))
    except TypeError:
        roles = ", ".join(vars(Columns()))
        raise DataError(f"columns: expected names for some of {roles}, got {', '.join(given or {})}") from None


def _sample_of_loader(batches: Iterable[Any], tokenizer: Any, max_samples: int) -> Sample:
    examples = examples_of_loader(batches, tokenizer, max_samples)
    digest = hashlib.sha256(repr([e.input_ids for e in examples]).encode()).hexdigest()
    kind: TaskKind = "text" if examples[0].response is None else "instruction"
    data = {"source": type(batches).__name__, "rows": len(examples), "fingerprint": f"sha256:{digest}", "kind": kind}
    return Sample(examples, kind, data)
