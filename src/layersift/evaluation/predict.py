"""What a trained run says of rows, whose labels nobody needs to know."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from layersift.config.recipe import TaskKind
from layersift.data.chat.conversation import CALL, ROLES, messages_in
from layersift.data.columns import names_of
from layersift.data.encode import Encoder
from layersift.data.images import Row, require_whole
from layersift.data.table import Table
from layersift.errors import DataError, LayersiftError, listed
from layersift.evaluation.generation import answers_of
from layersift.evaluation.metrics import read_outputs
from layersift.records.runs import RunRecord

Prediction = dict[str, Any]
FORMS = (".csv", ".jsonl")
OUTPUTS: dict[TaskKind, tuple[str, ...]] = {  # columns of a prediction
    "classification": ("row", "label", "probability"),
    "regression": ("row", "value"),
    "instruction": ("row", "answer"),
}
STAND_IN = "?"  # for an answer that is asked for


def rows_to_predict(record: RunRecord, rows: Sequence[Row], data: str) -> Table:
    """Rows as a run's training read them, but for labels and answers, which need not be there.

    Args:
        rows: of the source ``data``.

    Raises:
        DataError: the rows lack what the model reads.
        LayersiftError: the run was trained on plain text, of which nothing is predicted.
    """
    kind, columns = record.encoder.kind, record.columns
    if kind == "text":
        raise LayersiftError("the run was trained on plain text; there is no label and no answer to predict")
    read = replace(columns, label=None, response=None)
    for number, row in enumerate(rows, start=1):
        for name in read.needed():
            if row.get(name) is None and not (name == columns.image and kind == "instruction"):
                present = ", ".join(map(repr, row))
                raise DataError(
                    f"{data}, row {number}: nothing in column {name!r}, which the model reads; has {present}"
                )
    if kind == "instruction":
        return Table(tuple(_to_answer(row, record) for row in rows), data, kind, columns)
    return Table(tuple(rows), data, kind, read)


def columns_to_keep(given: Sequence[str], rows: Sequence[Row], data: str, kind: TaskKind) -> dict[str, str]:
    """The data's columns that stand beside the predictions, with their names there; one text may name several,
    between commas. A column that is called like one of the predictions gets ``data_`` before its name.

    Raises:
        DataError: the data have no such column.
    """
    names = names_of(rows)
    asked = dict.fromkeys(
        name for text in given for name in ([text] if text in names else map(str.strip, text.split(",")))
    )
    kept: dict[str, str] = {}
    taken = {*OUTPUTS[kind], *asked}
    for name in asked:
        if name not in names:
            raise DataError(f"{data} has no column {name!r} (--keep); it has: {listed(map(repr, names), 160)}")
        kept[name] = name
        while name in OUTPUTS[kind] and kept[name] in taken:
            kept[name] = f"data_{kept[name]}"
        for number, row in enumerate(rows, start=1):  # before the model is asked, not behind it
            written = json.dumps(_as_json(row.get(name), name), ensure_ascii=False)
            require_whole(written, f"{data}, row {number}, column {name!r}")
    return kept


def keep_columns(predictions: Sequence[Prediction], rows: Sequence[Row], names: Mapping[str, str]) -> list[Prediction]:
    """The predictions with columns of their rows behind the row's number; None where a row has no such column.

    Args:
        names: see :func:`columns_to_keep`.

    Raises:
        DataError: a column holds bytes.
    """
    return [
        {
            "row": prediction["row"],
            **{there: _as_json(row.get(name), name) for name, there in names.items()},
            **prediction,
        }
        for prediction, row in zip(predictions, rows, strict=True)
    ]


def _as_json(value: Any, column: str) -> Any:
    """A value as JSON has it; what it has no form for, such as a date, as text."""
    if value is None or isinstance(value, str | int | float):
        return value

    def text_of(part: Any) -> str:
        if isinstance(part, bytes | bytearray):
            raise DataError(f"--keep {column}: the column holds bytes, which cannot be written as text")
        return str(part)

    return json.loads(json.dumps(value, default=text_of))


def _to_answer(row: Row, record: RunRecord) -> Row:
    """A row whose answer stands open: what is in its place is never read."""
    columns = record.columns
    if columns.messages:
        turns = messages_in(row[columns.messages])
        last = turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], dict) else {}
        role, text = ("from", "value") if "from" in last else ("role", "content")
        said_by = str(last.get(role))
        if (
            last and said_by != CALL and ROLES.get(said_by, said_by) != "assistant"
        ):  # a user's turn, a tool's result, and others
            answers = "gpt" if role == "from" else "assistant"
            return {**row, columns.messages: [*turns, {role: answers, text: STAND_IN}]}
        return row
    open_answer: Any = STAND_IN
    if columns.choices:
        given = row[columns.choices]
        open_answer = (given.get("label") or [0])[0] if isinstance(given, dict) else 0
    return {**row, str(columns.response): open_answer}


def predict(
    model: Any,
    encoder: Encoder,
    table: Table,
    pad_id: int,
    max_new_tokens: int = 256,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Prediction], int]:
    """A prediction a row, in order, and how many rows were cut to the length limit.

    Classification: ``label`` and its ``probability``. Regression: ``value``. Instructions: ``answer``, generated
    greedily; None where the prompt leaves the model no place for one. Each with ``row``, its number in the source,
    counted from 1.

    Raises:
        DataError: a row cannot be read by the model.
        ModelError: its outputs are not finite.
    """
    numbers = table.numbers or tuple(range(1, len(table.rows) + 1))
    if encoder.kind == "instruction":
        prompts = [encoder.prompt(table, index) for index in range(len(table.rows))]
        answers = answers_of(model, encoder, prompts, pad_id, max_new_tokens, progress)
        return [{"row": n, "answer": answer} for n, answer in zip(numbers, answers, strict=True)], 0
    encoded = [encoder.encode(table, index) for index in range(len(table.rows))]
    examples = [example for example, _ in encoded if example is not None]
    outputs = read_outputs(model, encoder, examples, pad_id, progress)
    predictions = [_named(output, encoder) for output in outputs]
    return [{"row": n, **values} for n, values in zip(numbers, predictions, strict=True)], sum(
        cut for _, cut in encoded
    )


def _named(output: torch.Tensor, encoder: Encoder) -> Prediction:
    """One row's logits (C,), or number (1,), in words."""
    if encoder.kind == "regression":
        return {"value": float(output[0])}
    probabilities = output.double().softmax(dim=-1)
    best = int(output.argmax())
    return {"label": encoder.classes[best], "probability": float(probabilities[best])}


def require_form(path: Path) -> None:
    """Refuse a file of another kind than predictions are written in.

    Raises:
        LayersiftError: its name ends otherwise.
    """
    if path.suffix not in FORMS:
        raise LayersiftError(f"{path}: predictions are written as {' or '.join(FORMS)}; give a name that ends so")


def as_text(predictions: Sequence[Prediction], form: str = ".csv") -> str:
    """The predictions as a file's text: a line a row; of .csv the first line names the columns."""
    if form == ".jsonl":
        return "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions)
    written = io.StringIO()
    writer = csv.DictWriter(written, list(predictions[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in p.items()} for p in predictions)
    return written.getvalue()


def _cell(value: Any) -> Any:
    """A value of a .csv file: lists and objects as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
