"""What is shown to the model (a random sample of the task, or ready batches), and what criteria look at of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layersift.config.recipe import TaskKind
from layersift.config.select import BOTTOM, FEWEST_SAMPLES, SelectSettings
from layersift.data.encode import Encoder, encode_rows, random_order
from layersift.data.examples import Example
from layersift.data.loader import examples_of_loader
from layersift.data.table import Table, require_rows
from layersift.errors import DataError, SelectionError
from layersift.models.load import LoadedModel
from layersift.models.stacks import BlockStack
from layersift.records.reading import DataRecord, describe
from layersift.represent.positions import get_position
from layersift.score.context import ScoringContext
from layersift.score.criteria.eva import EVA
from layersift.score.criteria.pilot import PILOT
from layersift.score.criterion import Criterion
from layersift.score.registry import Named, find_criterion
from layersift.select.published import PUBLISHED, published_examples, published_position

if TYPE_CHECKING:
    from peft import PeftConfig

# Towers that read what is to be written.
TOWERS_WITH_RESPONSE = ("language", "decoder")


def default_position(kind: TaskKind, stack: BlockStack) -> str:
    """The mean over the tokens that bear the loss where the stack reads them, else over all tokens.

    That leaves out the first token of a text, on which decoders put activations so large that nothing else counts.
    docs/method.md gives the evidence: the choice of position changes a selection more than anything else, and the
    mean over the tokens that the task is about did best on short runs, without the artefact of a constant token.
    """
    reads_response = kind in ("instruction", "text")
    positions = ["response-mean" if reads_response and p.tower in TOWERS_WITH_RESPONSE else "mean" for p in stack.parts]
    return "+".join(dict.fromkeys(positions))


@dataclass(frozen=True)
class Sample:
    """What is shown to the model, and what the selection file says of it."""

    examples: tuple[Example, ...]
    kind: TaskKind
    data: DataRecord


def sample_table(table: Table, encoder: Encoder, settings: SelectSettings) -> Sample:
    """A random sample of the table's distinct rows without replacement, drawn by the seed.

    A row that comes again would bias every unbiased estimator: two samples that are one are alike in all layers.

    Raises:
        DataError: the table is too small, or a row cannot be encoded.
    """
    require_rows(table, FEWEST_SAMPLES)
    if settings.compat == "paper":
        examples = published_examples(table, encoder, settings.max_samples)
        return Sample(examples, table.kind, describe(table))
    distinct = table.take(distinct_rows(table))
    order = random_order(len(distinct.rows), settings.seed)
    encoded = encode_rows(distinct, encoder, order, settings.max_samples, distinct=True)
    again = len(table.rows) - len(distinct.rows) + encoded.duplicates
    if len(encoded.examples) < FEWEST_SAMPLES <= len(table.rows):
        raise DataError(
            f"{table.source}: {len(encoded.examples)} distinct samples that leave room for what is read; at least "
            f"{FEWEST_SAMPLES} are needed ({again} of {len(table.rows)} rows say what another says)"
        )
    repeated = f"{again} rows that say what another says left out" if again else ""
    left_out = "; ".join(filter(None, (encoded.notice, repeated)))
    return Sample(encoded.examples, table.kind, describe(table, left_out))


def distinct_rows(table: Table) -> list[int]:
    """The first row of each that the model reads alike: labels of a classification are not read."""
    columns = table.columns
    read = [name for name in columns.used() if name != columns.label]
    first: dict[bytes, int] = {}
    for index, row in enumerate(table.rows):
        said = json.dumps([row.get(name) for name in read], default=repr)
        first.setdefault(hashlib.sha256(said.encode()).digest(), index)  # rows may be megabytes, as images are
    return list(first.values())


def sample_of_batches(batches: Iterable[Any], tokenizer: Any, max_samples: int, model: Any = None) -> Sample:
    """The samples of batches, in the order in which they come; one that comes again is left out."""
    batched = examples_of_loader(batches, tokenizer, max_samples, model, distinct=True)
    examples, read = batched.examples, len(batched.examples) + batched.again
    if len(examples) < FEWEST_SAMPLES <= read:
        raise DataError(
            f"{len(examples)} distinct samples; at least {FEWEST_SAMPLES} are needed ({batched.again} of {read} say "
            "what another says)"
        )
    digest = hashlib.sha256(repr([e.input_ids for e in examples]).encode()).hexdigest()
    left_out = f"{batched.again} of {read} samples that say what another says left out" if batched.again else ""
    data = DataRecord(type(batches).__name__, len(examples), f"sha256:{digest}", batched.kind, left_out=left_out)
    return Sample(examples, batched.kind, data)


def criterion_of(settings: SelectSettings, given: Named | None = None) -> Criterion:
    """The criterion that the settings name, or the one that was ``given``; the published one where that is asked for.

    Raises:
        LayersiftError: no such criterion or position; ``given`` beside the published selection.
    """
    if settings.position is not None:
        get_position(settings.position)
    if settings.compat == "paper":
        if given is not None:
            raise SelectionError("compat 'paper' has a criterion of its own; leave criterion away")
        return PUBLISHED
    return find_criterion(settings.criterion if given is None else given)


def require_fitting(criterion: Criterion, settings: SelectSettings, stack: BlockStack) -> None:
    """Refuse criteria whose scores do not mean what would be made of them.

    Raises:
        SelectionError: one of those.
    """
    if settings.compat == "paper" and stack.joined:
        raise SelectionError("--compat paper knows one stack of blocks; name one tower")
    if stack.joined and (criterion.needs in ("nothing", "weights", "training") or criterion is EVA):
        raise SelectionError(f"{criterion.name} ranks the layers of one stack of blocks; name one tower")
    open_count = settings.budget_params is not None or settings.threshold is not None or settings.objective is not None
    if criterion.name.removeprefix(BOTTOM) == PILOT.name and open_count:
        raise SelectionError("pilot tries subsets of one size; give it a number of layers: ratio or top-n")


def scoring_contexts(
    loaded: LoadedModel,
    stack: BlockStack,
    sample: Sample,
    settings: SelectSettings,
    *,
    adapter: PeftConfig | None = None,
    count: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[ScoringContext]:
    """A context for each part of ``stack``, of whose layers ``count`` are going to be chosen, or half."""
    return [
        ScoringContext(
            model=loaded.model,
            stack=part,
            examples=sample.examples,
            kind=sample.kind,
            position=settings.position
            or (published_position(part) if settings.compat == "paper" else default_position(sample.kind, part)),
            pad_id=loaded.pad_id,
            seed=settings.seed,
            count=min(part.num_layers, count or max(1, part.num_layers // 2)),
            adapter=adapter,
            probe_steps=settings.probe_steps,
            progress=progress if part is stack.parts[-1] else None,
            post_norm_last=settings.compat == "paper",
        )
        for part in stack.parts
    ]
