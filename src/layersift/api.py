"""The stages as functions of plain arguments, for those who build on layersift; see docs/api.md."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from layersift.config.fields import Seed, check_value, types_of
from layersift.config.quantities import GIVEN, towers_of
from layersift.config.recipe import DataSettings, EvaluateSettings, ModelSource
from layersift.config.train import AUTO, TrainSettings
from layersift.data.encode import encode_sample
from layersift.data.loader import examples_of_loader
from layersift.data.rows import read_rows
from layersift.data.split import digests_of, overlap_notice
from layersift.evaluation import metrics
from layersift.evaluation import predict as predicting
from layersift.evaluation.load_run import count_rows_read, load_run, run_table
from layersift.evaluation.metrics import Evaluation
from layersift.experiment.rates import find_rate
from layersift.models.load import pad_id
from layersift.models.stacks import BlockStack, layers_in
from layersift.progress import Reporter
from layersift.records.reading import describe
from layersift.records.runs import RunRecord
from layersift.records.selection import Selection, make_selection
from layersift.represent.positions import get_position
from layersift.represent.read import Batching, Representations
from layersift.represent.read import represent as read_states
from layersift.task import Task
from layersift.training import fit
from layersift.training.output import RunOutput

log = logging.getLogger(__name__)


def read_representations(
    model: nn.Module, stack: BlockStack, batches: Any, positions: Sequence[str] = ("mean",), at_most: int = 128
) -> dict[str, Representations]:
    """R_0 ... R_M of the samples in ``batches``, by the name of each position, in one forward pass.

    Args:
        model: a transformers model; left as it was.
        stack: its blocks, M of them.
        batches: an iterable of batches with ``input_ids`` (B, T), and ``attention_mask`` where there is padding.
        positions: names of :data:`layersift.POSITIONS`.
        at_most: so many samples, the first ones.

    Returns:
        By position, R_0 ... R_M of n samples: M + 1 tensors (n, d).

    Raises:
        LayersiftError: no such position, or batches or blocks that cannot be read.

    Examples:
        >>> from layersift import find_stack, read_representations
        >>> from transformers import AutoModel, AutoTokenizer
        >>> model, tokenizer = AutoModel.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
        >>> batch = tokenizer(["a b c", "d e"], padding=True, return_tensors="pt")
        >>> states = read_representations(model, find_stack(model), [batch])["mean"].states
        >>> len(states), states[0].shape
        (5, torch.Size([2, 32]))
    """
    examples = examples_of_loader(batches, None, at_most, model).examples
    return read_states(
        model, stack, examples, [get_position(name) for name in positions], batching=Batching(pad_id(model, None))
    )


def train(
    model: str | ModelSource,
    data: str | DataSettings,
    selection: Selection | str,
    output: str | Path,
    settings: TrainSettings | None = None,
    *,
    seed: int = 0,
    resume: bool = False,
    merge: bool = False,
) -> RunRecord:
    """Train adapters on the selected layers and write a run directory, as ``layersift train`` does.

    Args:
        model: a directory, a Hub id, or a source with revision, dtype and device.
        data: a file, a directory or a Hub id, or settings that name columns and lengths.
        selection: a selection, or layers as ``--layers`` has them: ``"20-27,31"``, ``"last:8"``, or
            ``"encoder=8-11 decoder=0-11"``.
        output: the run directory to write.
        settings: of the training; None: the defaults.
        seed: of the head, the adapters and the order of the rows.
        resume: go on from the last checkpoint in ``output``.
        merge: also write the model with the adapters merged into it.

    Returns:
        The run's record.

    Raises:
        LayersiftError: the model, the data, a setting or the output cannot be used.

    Examples:
        >>> from layersift import TrainSettings, train
        >>> record = train("model", "rows.jsonl", "last:2", "new-run", TrainSettings(epochs=1, rank=4))
        >>> record.mask, record.steps, record.trainable_parameters
        ('0011', 2, 1090)
    """
    check_value("seed", seed, Seed)
    settings = settings or TrainSettings()
    source = ModelSource(model) if isinstance(model, str) else model
    given = DataSettings(data) if isinstance(data, str) else data
    place = RunOutput(Path(output), resume, merge)
    place.require_free()
    task = Task.open(source, given, tower=towers_of(selection) if isinstance(selection, str) else None)
    given_layers = layers_in(task.stack, selection) if isinstance(selection, str) else ()
    loaded = task.load(seed)
    encoded = task.encode(settings.max_samples, seed)
    record, searched = describe(task.table, encoded.notice), None
    if isinstance(selection, str):
        rule = f"{GIVEN}{selection}"
        selection = make_selection(loaded.name, loaded.revision, task.stack, given_layers, record, rule)
    if settings.learning_rate == AUTO:
        searched = place.kept_search() or find_rate(task, task.table, selection, settings, seed, Reporter())
        settings = replace(settings, learning_rate=searched.chosen)
    read = frozenset(chain.from_iterable(digests_of(task.table, encoded)))
    rows = fit.TrainingData(task.encoder, encoded.examples, record, searched, read)
    return fit.train(loaded, rows, selection, settings, place, seed=seed)


def evaluate(
    run: str | Path,
    data: str,
    *,
    split: str = "test",
    max_samples: int | None = None,
    device: str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Judge the adapters in a run directory on held-back data, as ``layersift evaluate`` does.

    Args:
        run: a run directory, as :func:`train` writes it.
        data: a file, a directory or a Hub id; its columns are those of the training.
        split: of a directory or Hub data set.
        max_samples: so many rows, drawn by ``seed``; None: all.
        device: ``cpu``, ``cuda``, ``cuda:1``; None: as in the training.
        seed: of the drawn rows.
        trust_remote_code: run Python code that the base model brings, whatever the run directory says of it.

    Returns:
        The metrics, and one outcome a sample.

    Raises:
        LayersiftError: not a finished run, its base model has changed, or data that cannot be used.

    Examples:
        >>> from layersift import evaluate
        >>> judged = evaluate("run", "rows.jsonl")
        >>> judged.samples, list(judged.metrics)
        (24, ['accuracy', 'f1', 'matthews'])
    """
    check_value("seed", seed, Seed)
    check_value("max_samples", max_samples, types_of(EvaluateSettings)["max_samples"])
    record = RunRecord.load(Path(run))
    table = run_table(record, data, split)
    _, loaded, encoder = load_run(Path(run), device, trust_remote_code=trust_remote_code)
    encoded = encode_sample(table, encoder, max_samples, seed)
    if seen := count_rows_read(Path(run), table, encoded):
        log.warning("%s: %s", data, overlap_notice(seen, len(encoded.rows)))
    return metrics.evaluate(loaded.model, encoder, encoded.examples, loaded.pad_id)


def predict(
    run: str | Path,
    data: str,
    *,
    split: str = "test",
    max_new_tokens: int = 256,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> list[dict[str, Any]]:
    """What a run says of rows with or without labels, as ``layersift predict`` does.

    Args:
        run: a run directory, as :func:`train` writes it.
        data: a file, a directory or a Hub id; labels need not be there.
        split: of a directory or Hub data set.
        max_new_tokens: the longest written answer, in tokens.
        device: ``cpu``, ``cuda``, ``cuda:1``; None: as in the training.
        trust_remote_code: run Python code that the base model brings, whatever the run directory says of it.

    Returns:
        A dict a row, in order: ``row``, its number in the data from 1, with ``label`` and ``probability``, ``value`` of
        a regression, or ``answer``.

    Raises:
        LayersiftError: not a finished run, its base model has changed, or data that cannot be used.

    Examples:
        >>> from layersift import predict
        >>> predictions = predict("run", "rows.jsonl")
        >>> len(predictions), sorted(predictions[0])
        (24, ['label', 'probability', 'row'])
    """
    check_value("max_new_tokens", max_new_tokens, types_of(EvaluateSettings)["max_new_tokens"])
    table = predicting.rows_to_predict(RunRecord.load(Path(run)), read_rows(data, split), data)
    _, loaded, encoder = load_run(Path(run), device, trust_remote_code=trust_remote_code)
    predictions, _ = predicting.predict(loaded.model, encoder, table, loaded.pad_id, max_new_tokens)
    return predictions
