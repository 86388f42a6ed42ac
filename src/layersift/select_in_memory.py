"""`select_layers`: the whole choice in one call, for scripts that already have a model and data."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from layersift.adapt.targets import layer_costs
from layersift.compat import commit_of, name_of
from layersift.config.fields import default_of, plain_types, types_of
from layersift.config.recipe import Columns, DataSettings, ModelSource
from layersift.config.select import SelectSettings
from layersift.data.rows import rows_of_dataset
from layersift.data.table import table_of
from layersift.errors import DataError, LayersiftError, ModelError, SelectionError, closest
from layersift.models.load import UNKNOWN, LoadedModel
from layersift.models.stacks import find_stack, unwrap_compiled
from layersift.records.selection import Selection
from layersift.score.registry import Named
from layersift.select.choose import select
from layersift.select.sample import Sample, sample_of_batches
from layersift.task import Task

if TYPE_CHECKING:
    from peft import PeftConfig

log = logging.getLogger(__name__)

STREAMED = 8  # times as many rows of a stream are read as samples are wanted
OF_DATA = (
    "task",
    "max_length",
    "chat_template",
    "source_language",
    "target_language",
)  # of DataSettings, what rows in memory can be given


def select_layers(
    model: nn.Module,
    data: Any,
    tokenizer: Any = None,
    *,
    criterion: Named | None = None,
    adapter: PeftConfig | None = None,
    columns: dict[str, str] | None = None,
    processor: Any = None,
    **settings: Any,
) -> Selection:
    """Choose the layers of ``model`` that should carry adapters for ``data``, from one forward pass.

    The default criterion is the CKA of a layer's input and output (arXiv 2602.05988).

    Args:
        model: any transformers model, with or without a head; left as it was.
        data: a `datasets.Dataset`, a list of dicts, or a DataLoader (any iterable of batches with ``input_ids``, and
            ``attention_mask`` and ``labels`` where there are some), or rows with ``input_ids``. Batches are taken in
            the order they come; of a stream of rows, the first are read.
        tokenizer: needed unless ``data`` holds batches, or images alone.
        criterion: a name from ``layersift criteria`` (``cka``, ``fisher``, ``cka@last``, ``bottom:cka``), or a
            function that takes a :class:`layersift.score.context.ScoringContext` and returns a score, or None, a layer.
        adapter: the PEFT config that a budget is counted for, and whose target modules short trainings adapt.
        columns: names by role (``text``, ``text_pair``, ``label``, ``prompt``, ``response``, ``messages``, ``image``,
            ``choices``), where they are not the usual ones.
        processor: reads images, or images and text; needed where ``data`` hold images.
        settings: any field of :class:`layersift.config.select.SelectSettings`, by its name: ``ratio``, ``top_n``,
            ``budget_params``, ``threshold`` or ``objective`` say how many layers; ``position`` which tokens stand for a
            sample (``first``, ``last``, ``last-content``, ``last-prompt``, ``mean``, ``response-mean``); then
            ``max_samples``, ``seed``, ``tower``, ``until_stable``, ``probe_steps``, ``compat``. ``modules=True`` with
            ``budget_params`` or ``objective`` chooses modules with ranks of their own for ``adapter``. And of the data:
            ``task``, ``max_length``, ``source_language``, ``target_language``, and ``chat_template``, which is the
            template's text.

    Returns:
        The selection, of M layers.

    Raises:
        LayersiftError: the data, the model or a setting cannot be used; the message says what would be right.

    Examples:
        >>> import json
        >>> from layersift import select_layers
        >>> from transformers import AutoModel, AutoTokenizer
        >>> model, tokenizer = AutoModel.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
        >>> rows = [json.loads(line) for line in open("rows.jsonl")]
        >>> print(select_layers(model, rows, tokenizer, ratio=0.5))
        0101  (top 2 of 4; cka at mean, 24 samples)
    """
    of_data = {name: settings.pop(name) for name in OF_DATA if name in settings}
    chosen, of_rows = _settings(settings), DataSettings("rows", **of_data)
    model = unwrap_compiled(model)
    _require_model(model)
    if chosen.budget_params is not None and adapter is None:
        raise SelectionError("budget_params needs adapter, the PEFT config that it is counted for")
    name = name_of(model) or type(model).__name__
    revision = commit_of(getattr(model, "config", None)) or UNKNOWN
    loaded = LoadedModel(model, tokenizer, ModelSource(name), revision, processor)
    source = type(data).__name__
    data, holds_rows = _rows_or_batches(data, chosen.max_samples)
    if holds_rows:
        if tokenizer is None and processor is None:
            raise DataError("rows need a tokenizer (of images a processor): select_layers(model, data, tokenizer=...)")
        rows = rows_of_dataset(data) if hasattr(data, "to_list") else list(data)
        table = table_of(rows, source, _columns(columns), of_rows.task)
        sample = Task.around(loaded, of_rows, table).sample(chosen)
    else:
        if chosen.compat:
            raise DataError("compat='paper' tokenises rows of text itself; give a dataset instead of batches")
        if unused := [*(["columns"] if columns else []), *(name for name in of_data if name != "task")]:
            raise DataError(f"{unused[0]} is of rows of text; batches are tokenised already")
        sample = sample_of_batches(data, tokenizer, chosen.max_samples, model)
        if of_rows.task not in (None, sample.kind):
            raise DataError(f"task is {of_rows.task!r}, but these batches are of {sample.kind!r}, by their labels")
    if sample.data.left_out:
        log.warning(sample.data.left_out)
    sample = _as_taken(model, sample)
    costs: Sequence[int] = ()
    if chosen.budget_params is not None:
        costs = layer_costs(model, find_stack(model, chosen.tower), adapter)
    return select(loaded, sample, chosen, layer_costs=costs, adapter=adapter, criterion=criterion)


def _require_model(model: Any) -> None:
    """Refuse what cannot be run on samples: no module, one without weights, or one that takes something else.

    Raises:
        ModelError: see above.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is {type(model).__name__}; a transformers model is needed")
    weights = list(model.parameters())
    if weights and all(p.device.type == "meta" for p in weights) and not hasattr(model, "hf_device_map"):
        raise ModelError(f"{type(model).__name__} is on the meta device: its weights are not loaded; load it first")
    takes = inspect.signature(model.forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values()) and "input" not in takes
    if not open_ended and not {"input_ids", "pixel_values"} & set(takes):
        raise ModelError(
            f"{type(model).__name__} takes {', '.join(takes)}, not input_ids; give the transformer within it (of a "
            "SentenceTransformer model[0].auto_model)"
        )


def _as_taken(model: nn.Module, sample: Sample) -> Sample:
    """The sample without the token types that a module of the user's own does not take."""
    takes = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return sample
    examples = (replace(e, types={n: v for n, v in e.types.items() if n in takes}) for e in sample.examples)
    return replace(sample, examples=tuple(examples))


def _settings(given: dict[str, Any]) -> SelectSettings:
    known = [f.name for f in fields(SelectSettings)]
    for name in given:
        if name not in known:
            close = closest(name, [*known, *OF_DATA])
            hint = f"; did you mean {close!r}?" if close else f"; known: {', '.join([*known, *OF_DATA])}"
            raise LayersiftError(f"select_layers: unknown setting {name!r}{hint}")
    return SelectSettings(**given)


def _rows_or_batches(data: Any, max_samples: int) -> tuple[Any, bool]:
    """The data, and whether they are rows rather than batches or tokenised rows.

    Of a stream of rows, which may never end, the first are read: eight times as many as are wanted.
    """
    if isinstance(data, dict):
        raise DataError(f"expected rows or batches, got several splits ({', '.join(map(str, data))}); give one of them")
    if isinstance(data, str) or not hasattr(data, "__iter__"):
        raise DataError(f"data is {repr(data)[:60]}; a datasets.Dataset, a list of rows or batches are needed")
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas
        return data.to_dict("records"), True
    if hasattr(data, "column_names") and hasattr(data, "to_list") and hasattr(data, "__len__"):
        return data, "input_ids" not in data.column_names
    if hasattr(data, "__len__") and isinstance(data, list | tuple):
        return data, not (data and _is_batch(data[0]))
    if isinstance(data, torch.utils.data.DataLoader):
        return data, False
    items = iter(data)
    first = list(islice(items, 1))
    if not first or not isinstance(first[0], dict) or _is_batch(first[0]):
        return chain(first, items), False
    most = STREAMED * max_samples
    rows = [*first, *islice(items, most - 1)]
    if len(rows) == most:
        log.warning("a stream: the sample is drawn from its first %d rows", most)
    return rows, True


def _is_batch(item: Any) -> bool:
    """Whether an item is a batch, or a row that is tokenised, and not a row of text."""
    return hasattr(item, "keys") and ("input_ids" in item or any(map(torch.is_tensor, item.values())))


def _columns(given: dict[str, str] | None) -> Columns:
    if given is not None and not isinstance(given, dict):
        raise DataError(f"columns: {repr(given)[:60]}; a dict of columns by role is needed, such as {{'text': 'body'}}")
    try:
        return Columns(**(given or {}))
    except TypeError:
        roles = ", ".join(vars(Columns()))
        raise DataError(f"columns: expected names for some of {roles}, got {', '.join(given or {})}") from None


def _signature() -> inspect.Signature:
    """What `help` and editors show: every setting with its default, read off the settings themselves."""
    own = [p for p in inspect.signature(select_layers).parameters.values() if p.kind is not p.VAR_KEYWORD]
    taken = {p.name for p in own}
    options = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default_of(f) is MISSING else default_of(f),
            annotation=" | ".join(getattr(t, "__name__", str(t)) for t in plain_types(types_of(cls)[f.name])),
        )
        for cls in (SelectSettings, DataSettings)
        for f in fields(cls)
        if f.name not in taken and (cls is SelectSettings or f.name in OF_DATA)
    ]
    return inspect.Signature([*own, *options], return_annotation="Selection")


select_layers.__signature__ = _signature()  # type: ignore[attr-defined]
