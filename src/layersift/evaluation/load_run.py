"""Load a finished run with how its data were encoded, and judge it on rows that were held back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from layersift.adapt import store
from layersift.adapt.targets import saved_modules
from layersift.config.train import WatchSettings
from layersift.data.encode import Encoded, Encoder, set_languages
from layersift.data.examples import Example, digest_of
from layersift.data.images import with_whole_paths
from layersift.data.split import count_read, digests_of
from layersift.data.table import Table, class_counts, read_alike
from layersift.errors import ModelError, wrap_library_errors
from layersift.evaluation.metrics import METRICS, TOKEN_BUDGET, Evaluation, classes_in, evaluate, majority_of, one_run
from layersift.files import write_bytes, write_text
from layersift.models.load import LoadedModel, load_model
from layersift.models.source import is_revision
from layersift.models.stacks import longest_text
from layersift.records.runs import HELD_BACK_FILE, SELECTION_FILE, HeldBack, Look, RunRecord, rows_read
from layersift.records.selection import Selection
from layersift.statistics.intervals import Interval, mean_score, unit_of
from layersift.training.watch import Judge, Watch


def load_run(
    run: str | Path, device: str | None = None, with_adapters: bool = True, trust_remote_code: bool = False
) -> tuple[RunRecord, LoadedModel, Encoder]:
    """The run's record, its model with adapters (or as it was before them), and its encoder.

    Args:
        run: a run directory, as :func:`train` writes it.
        device: ``cpu``, ``cuda``, ``cuda:1``; None: as in the training.
        with_adapters: False gives the base model.
        trust_remote_code: run Python code that the model brings. The record's own word on it does not count: who may
            write a run directory could otherwise have any code run.

    Returns:
        The record, the model with tokenizer and revision, and the encoder.

    Raises:
        LayersiftError: not a finished run, or of a model that needs its own code, which is not allowed.
        ModelError: the base model cannot be loaded, or is another one than was trained.

    Examples:
        >>> from layersift import load_run
        >>> record, loaded, encoder = load_run("run")
        >>> type(loaded.model).__name__, encoder.classes
        ('PeftModelForSequenceClassification', ('0', '1'))
    """
    directory = Path(run)
    record = RunRecord.load(directory)
    if record.source.trust_remote_code and not trust_remote_code:
        raise ModelError(
            f"{directory} was trained with Python code that {record.source.name!r} brings; --trust-remote-code "
            "(trust_remote_code=True) allows it again"
        )
    source = replace(record.source, device=device or record.source.device, trust_remote_code=trust_remote_code)
    how = record.encoder
    images = record.columns.image is not None
    base = load_model(source, how.kind, max(1, len(how.classes)), record.seed, images)
    if not is_revision(source, base.revision, record.model_revision):
        raise ModelError(
            f"{source.name!r} is {base.revision} now, but the adapters in {directory} were trained on "
            f"{record.model_revision}"
        )
    if how.languages is not None:
        set_languages(base.tokenizer, *how.languages, translates=True)
    encoder = Encoder(
        base.tokenizer,
        how.kind,
        how.classes,
        how.max_length,
        how.chat_template,
        base.processor,
        base.seq2seq,
        longest_text(base.model.config),
    )
    if not with_adapters:
        return record, base, encoder
    if record.trained_digest not in (None, store.digest(record.settings.method, directory)):
        raise ModelError(
            f"{directory}: {store.weights_file(record.settings.method)} is not what was trained: it has changed since"
        )
    _require_own_layers(directory, record, base)
    model = store.load(base.model, record.settings.method, directory).eval()
    return record, replace(base, model=model), encoder


def _require_own_layers(directory: Path, record: RunRecord, base: LoadedModel) -> None:
    """Refuse a run whose record names other layers than its selection does, or than its adapters are on.

    Raises:
        ModelError: that.
    """
    path = directory / SELECTION_FILE
    if not path.is_file():
        return
    selection = Selection.load(path)
    stack = selection.stack(base.model)
    weights = directory / store.weights_file(record.settings.method)
    with (
        wrap_library_errors(ModelError, f"{weights}: the adapters cannot be read", "copy the whole run again"),
        safe_open(weights, "pt") as file,
    ):
        names = [f".{name}" for name in file.keys()]  # noqa: SIM118  # no mapping
    saved = record.settings.method_options.get("modules_to_save") or ()  # which are trained themselves, and no layers
    apart = tuple(f".{name}." for name in saved_modules(base.model, saved))
    names = [name for name in names if not any(module in name for module in apart)]
    blocks = {i: f".{stack.block_path(i)}." for i in range(stack.num_layers)}
    adapted = {i for i, block in blocks.items() if any(block in name for name in names)}
    if selection.mask != record.mask or not adapted <= set(selection.selected_layers):
        mask = "".join(str(int(i in adapted)) for i in blocks)
        raise ModelError(
            f"{directory}: its record names layers {record.mask}, {SELECTION_FILE} {selection.mask}, and there are "
            f"adapters on {mask}; they are not of one training"
        )


def run_table(record: RunRecord, data: str, split: str) -> Table:
    """Rows to evaluate a run on, read with the columns of its training.

    Raises:
        DataError: the data cannot be read, or lack one of those columns.
    """
    return read_alike(data, record.columns, record.encoder.kind, split)


def count_rows_read(run: Path, table: Table, encoded: Encoded) -> int | None:
    """How many of the rows the run has read in its training; None where it does not say.

    Raises:
        LayersiftError: what it says of them cannot be read.
    """
    before = rows_read(run)
    return None if before is None else count_read(digests_of(table, encoded), before)


def judge_of(encoder: Encoder, examples: Sequence[Example], pad_id: int, most_tokens: int) -> Judge:
    """Scores a model on examples, in batches of no more tokens than the training's."""

    def look(model: Any, share: float) -> Look:
        evaluation = evaluate(model, encoder, examples, pad_id, most_tokens=min(TOKEN_BUDGET, most_tokens))
        outcomes = tuple(round(outcome, 6) for outcome in evaluation.outcomes)
        return Look(
            share, next(iter(evaluation.metrics.values())), outcomes, evaluation.weights, evaluation.never_predicted
        )

    return look


def watch_of(
    settings: WatchSettings,
    examples: Sequence[Example],
    encoder: Encoder,
    pad_id: int,
    most_tokens: int,
    tell: Callable[[str], None] | None = None,
) -> Watch:
    """What the settings ask for.

    Args:
        examples: to score the model on while it trains; none: it is not.
    """
    if not examples:
        return Watch(report_to=settings.trackers, tell=tell)
    metric = METRICS[encoder.kind][0]
    return Watch(
        judge=judge_of(encoder, examples, pad_id, most_tokens),
        metric=metric,
        patience=settings.patience,
        higher_is_better=unit_of(metric).higher_is_better,
        report_to=settings.trackers,
        tell=tell,
        rows=digest_of(examples),
    )


@dataclass(frozen=True)
class Split:
    """Both sides of a split, as the model reads them."""

    fraction: float  # as asked for
    trained: Table
    held_back: Table
    encoded: Encoded  # of the rows held back
    tokens_seen: int  # of these, those that read like a training row once both are cut


def conclude_on(
    split: Split, encoder: Encoder, pad_id: int, most_tokens: int, *, chose_the_stop: bool
) -> Callable[[Any, Path], HeldBack]:
    """What judges a trained model on the rows held back, and writes them into its directory."""

    def conclude(model: Any, directory: Path) -> HeldBack:
        rows, examples = split.held_back, split.encoded.examples
        judged = evaluate(model, encoder, examples, pad_id, most_tokens=min(TOKEN_BUDGET, most_tokens))
        interval = interval_of(judged)
        edges = None if interval.low is None or interval.high is None else (interval.low, interval.high)
        return HeldBack(
            fraction=split.fraction,
            rows=rows.numbers,
            fingerprint=f"sha256:{rows.fingerprint}",
            file=write_rows(rows, directory),
            metrics=judged.metrics,
            interval=edges,
            chose_the_stop=chose_the_stop,
            tokens_seen=split.tokens_seen,
            **_by_class(split, encoder, judged),
        )

    return conclude


def interval_of(judged: Evaluation) -> Interval:
    """The 95 % interval of the score, over the samples; without edges where the score is no mean over them."""
    if next(iter(judged.metrics.values())) is None:
        return Interval(float("nan"), None, None, "undefined")
    return mean_score(one_run(judged))


def _by_class(split: Split, encoder: Encoder, judged: Evaluation) -> Mapping[str, Any]:
    if encoder.kind != "classification":
        return {}
    names = encoder.classes
    truth = classes_in(split.encoded.examples, names)
    predicted = [names[int(place)] for place in judged.predicted]
    right = Counter(is_ for is_, taken in zip(truth, predicted, strict=True) if is_ == taken)
    majority = majority_of(class_counts(split.trained), {"": truth})
    counts = {"class_rows": Counter(truth), "class_right": right, "class_predicted": Counter(predicted)}
    return {
        **{what: {name: count[name] for name in names} for what, count in counts.items()},
        "majority": majority.name if majority else None,
        "majority_accuracy": majority.accuracy[""] if majority else None,
    }


def write_rows(table: Table, directory: Path) -> str:
    """Write the rows as a file that is read again as they were; its name. Rows that hold bytes need .parquet."""
    image = table.columns.image
    rows = [
        {**row, image: with_whole_paths(row[image], table.source)} if image and row.get(image) is not None else row
        for row in table.rows
    ]
    try:
        text = "".join(json.dumps(row, ensure_ascii=False, default=_text_of) + "\n" for row in rows)
    except TypeError:
        import pyarrow as pa
        import pyarrow.parquet

        written = pa.BufferOutputStream()
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), written)
        write_bytes(directory / f"{HELD_BACK_FILE}.parquet", written.getvalue().to_pybytes())
        return f"{HELD_BACK_FILE}.parquet"
    write_text(directory / f"{HELD_BACK_FILE}.jsonl", text)
    return f"{HELD_BACK_FILE}.jsonl"


def _text_of(value: Any) -> str:
    """What JSON has no form for, such as a date."""
    if isinstance(value, bytes | bytearray):
        raise TypeError("bytes")
    return str(value)
