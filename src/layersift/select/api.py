"""`select_layers`: the whole choice in one call, for scripts that already have a model and data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from layersift.errors import DataError, SelectionError
from layersift.load.blocks import choose_stack, find_stacks
from layersift.load.data import Columns, TaskKind, class_names, table_of
from layersift.load.encode import Encoder
from layersift.load.models import pad_id
from layersift.load.rows import rows_of_dataset
from layersift.score.subject import PROBE_STEPS
from layersift.score.table import Named, find_criterion
from layersift.select.choose import select
from layersift.select.sample import sample_of_batches, sample_table
from layersift.select.selection import Compat, Selection
from layersift.select.settings import MAX_SAMPLES, SelectSettings

if TYPE_CHECKING:
    from peft import PeftConfig


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
        sample = sample_of_batches(data, tokenizer, max_samples)
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
