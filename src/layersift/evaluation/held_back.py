"""Judge a finished training on the rows that it held back, and keep them in its directory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersift.data.encode import Encoded, Encoder
from layersift.data.images import with_whole_paths
from layersift.data.table import Table, class_counts
from layersift.evaluation.classes import classes_in, majority_of
from layersift.evaluation.metrics import TOKEN_BUDGET, Evaluation, evaluate, one_run
from layersift.files import write_bytes, write_text
from layersift.records.run_record import HELD_BACK_FILE, HeldBack
from layersift.statistics.intervals import Interval, mean_score


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
