"""Choose the layers to adapt: the most important ones, by what each does to the user's own data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from layersift.measures import MEASURES
from layersift.provenance import command, versions
from layersift.represent.positions import get_position
from layersift.represent.read import represent
from layersift.score import LayerScores, score_layers, side_by_side
from layersift.select.budget import parameter_count, within_budget
from layersift.select.paper import published_choice, published_examples, published_position
from layersift.select.selection import Compat, Selection

if TYPE_CHECKING:
    from peft import PeftConfig

DEFAULT_RATIO = 0.5
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
    """How layers are chosen. One of ``ratio``, ``top_n``, ``budget_params`` counts; none means half of the layers."""

    ratio: float | None = None
    top_n: int | None = None
    position: str | None = None  # None: by the kind of task
    metric: str = "cka"
    max_samples: int = MAX_SAMPLES
    seed: int = 0
    tower: str | None = None
    compat: Compat | None = None
    budget_params: str | int | None = None  # trained parameters: 2000000, or 2M

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.ratio, self.top_n, self.budget_params)) > 1:
            raise SelectionError("give one of ratio, top-n and budget-params")
        if self.budget_params is not None:
            parameter_count(self.budget_params)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise SelectionError(f"ratio {self.ratio} is out of range; it must be above 0 and at most 1")
        if self.top_n is not None and self.top_n < 1:
            raise SelectionError(f"top-n {self.top_n} is out of range; it must be at least 1")
        if self.max_samples < FEWEST_SAMPLES:
            raise SelectionError(f"max-samples {self.max_samples} is too few; at least {FEWEST_SAMPLES} are needed")
        if self.compat not in (None, "paper"):
            raise unknown_name("compatibility", str(self.compat), ["paper"])
        if self.compat and self.position:
            raise SelectionError("--compat paper fixes the token position; leave --position away")
        if self.metric not in MEASURES:
            raise unknown_name("measure", self.metric, MEASURES)
        if self.position is not None:
            get_position(self.position)


def how_many(settings: SelectSettings, num_layers: int) -> int | None:
    """N: ``top_n``, or floor(ratio x M); None where it depends on what the layers of the ranking cost.

    Raises:
        SelectionError: it would be none of the layers, or more than there are.
    """
    if settings.budget_params is not None:
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
    """The ``count`` most important layers, ascending. Where too few have an importance, the lowest others fill up.

    Raises:
        SelectionError: no layer has an importance.
    """
    if not scores.ranking:
        why = next(iter(scores.undefined.values()))
        raise SelectionError(f"no layer has an importance ({why}); choose another position or other data")
    rest = [i for i in range(len(scores.importance)) if i not in scores.ranking]
    return tuple(sorted([*scores.ranking, *rest][:count]))


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
    progress: Callable[[int], None] | None = None,
) -> Selection:
    """Represent the sample, score the layers, choose.

    Args:
        layer_costs: trained parameters of each layer, which a budget is counted in.

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
    metric = "cka-biased" if published else settings.metric
    positions, by_part, seconds = [], [], 0.0
    for part in stack.parts:
        fallback = published_position(part) if published else default_position(sample.kind, part)
        positions.append(settings.position or fallback)
        representations = represent(
            model,
            part,
            sample.examples,
            get_position(positions[-1]),
            pad_id=padding,
            post_norm_last=published,
            progress=progress if part is stack.parts[-1] else None,
        )
        by_part.append(score_layers(representations, MEASURES[metric], constant_importance=1.0 if published else None))
        seconds += representations.seconds
    scores = side_by_side(by_part)

    def choose(n: int) -> tuple[int, ...]:
        return published_choice(stack, scores, n) if published else top_layers(scores, n)

    limit = ""
    if count is None:
        budget = parameter_count(settings.budget_params or 0)
        count = within_budget(choose, layer_costs, budget)
        limit = f" within {budget:,} trained parameters"
    return Selection(
        model=name,
        model_revision=revision,
        tower=stack.tower,
        block_pattern=stack.pattern,
        num_layers=stack.num_layers,
        importance=scores.importance,
        undefined=scores.undefined,
        ranking=scores.ranking,
        selected_layers=choose(count),
        rule=f"top {count} of {stack.num_layers}{limit}" + _rule_suffix(settings, stack, scores, count),
        position="+".join(dict.fromkeys(positions)),
        metric=metric,
        num_samples=len(sample.examples),
        seed=settings.seed,
        data=sample.data,
        top_dimension_share=scores.top_dimension_share,
        seconds={"represent": round(seconds, 3), "score": round(scores.seconds, 3)},
        versions=versions(),
        command=command(),
        compat=settings.compat,
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
    metric: str = "cka",
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
        adapter: the PEFT config that a budget is counted for.
        position: which tokens stand for a sample: ``first``, ``last``, ``last-content``, ``mean`` or
            ``response-mean``. By default the mean over the response for instruction data, else over all tokens.
        metric: ``cka`` (debiased) or ``cka-biased``.
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
    settings = SelectSettings(ratio, top_n, position, metric, max_samples, seed, tower, compat, budget_params)
    if (budget_params is None) != (adapter is None):
        raise SelectionError("budget_params and adapter, the PEFT config that it is counted for, belong together")
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
    padding, costs = pad_id(model, tokenizer), _costs(model, settings, adapter) if adapter else ()
    return select(model, sample, settings, padding=padding, name=name, revision=revision, layer_costs=costs)


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
