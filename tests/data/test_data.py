"""Reading rows and settling their columns."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from layersift.config.recipe import Columns
from layersift.data.columns import find_columns
from layersift.data.rows import read_rows
from layersift.data.table import class_names, read_table, require_rows, table_of
from layersift.errors import DataError

ROWS = [{"text": f"text {i}", "label": i % 2} for i in range(9)]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "saved"])
def test_every_format_gives_the_same_table(tmp_path, name):
    table = read_table(write(tmp_path / name, ROWS))
    assert list(table.rows) == ROWS
    assert (table.kind, table.columns) == ("classification", Columns(text="text", label="label"))
    assert table.fingerprint == table_of(ROWS, "memory").fingerprint


def test_fingerprint_follows_the_columns_in_use_and_the_order():
    same = table_of([{**row, "other": i} for i, row in enumerate(ROWS)], "memory").fingerprint
    assert same == table_of(ROWS, "memory").fingerprint
    assert same != table_of(ROWS[::-1], "memory").fingerprint
    assert same != table_of([*ROWS[:-1], {"text": "text 8", "label": 1}], "memory").fingerprint


def test_a_saved_dataset_with_splits(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "d"))
    assert read_rows(str(tmp_path / "d")) == ROWS
    with pytest.raises(DataError, match="no split 'test'; it has: train"):
        read_rows(str(tmp_path / "d"), "test")


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        (["sentence", "label", "idx"], None, Columns(text="sentence", label="label")),
        (["premise", "hypothesis", "label"], None, Columns("premise", "hypothesis", "label")),
        (["question", "sentence", "label"], None, Columns("question", "sentence", "label")),
        (["question1", "question2", "label"], None, Columns("question1", "question2", "label")),
        (["question", "answer"], None, Columns(prompt="question", response="answer")),
        (["prompt", "completion"], None, Columns(prompt="prompt", response="completion")),
        (
            ["instruction", "input", "output"],
            None,
            Columns(prompt="instruction", response="output", context="input"),
        ),
        (["messages"], None, Columns(messages="messages")),
        (["conversations", "id"], None, Columns(messages="conversations")),
        (["text"], None, Columns(text="text")),
        (["Text", "Label"], None, Columns(text="Text", label="Label")),
        (["text", "label"], "text", Columns(text="text")),
        (["prompt", "response", "messages"], "instruction", None),
        (["text", "label", "prompt", "response"], None, None),
        (["text", "label", "prompt", "response"], "classification", Columns(text="text", label="label")),
    ],
)
def test_usual_column_names(names, kind, expected):
    if expected is None:
        with pytest.raises(DataError, match=r"can be read in 2 ways: .*; .*--\*-column"):
            find_columns([dict.fromkeys(names)], Columns(), "file", kind)
    else:
        assert find_columns([dict.fromkeys(names)], Columns(), "file", kind) == expected


def test_flags_override_and_are_checked():
    names = ["text", "label", "q", "a"]
    assert find_columns([dict.fromkeys(names)], Columns(prompt="q", response="a"), "file") == Columns(
        prompt="q", response="a"
    )
    assert find_columns([dict.fromkeys(names)], Columns(text="q", label="a"), "file") == Columns(text="q", label="a")
    with pytest.raises(DataError, match=r"no column 'x' \(--text-column\)\. It has: 'text', 'label', 'q', 'a'"):
        find_columns([dict.fromkeys(names)], Columns(text="x"), "file")
    with pytest.raises(DataError, match="no columns for any task among id, url"):
        find_columns([{"id": 1, "url": 2}], Columns(), "file")


def test_fractions_are_regression_and_many_whole_numbers_ask(tmp_path):
    fractions = [{"text": "t", "score": s} for s in (1.0, 2.5, 3.0)]
    apart = read_table(write(tmp_path / "a.csv", fractions))
    assert apart.kind == "regression"
    assert apart.described().endswith("; 3 different numbers from 1 to 3")
    many = [{"text": "t", "label": i} for i in range(50)]
    halves = table_of([{"text": "a", "label": i % 3 / 2} for i in range(12)], "rows").described()
    assert halves.endswith("; 3 different numbers from 0 to 1, which --task classification reads as classes")
    with pytest.raises(DataError, match="classification with 50 classes, or as regression"):
        table_of(many, "file")
    assert table_of(many, "file", kind="regression").kind == "regression"


def test_classes_in_order():
    assert class_names(table_of([{"text": "t", "label": v} for v in (10, 9, 2)], "f")) == ("2", "9", "10")
    assert class_names(table_of([{"text": "t", "label": v} for v in ("b", "a")], "f")) == ("a", "b")
    with pytest.raises(DataError, match="column 'label' holds one class only"):
        class_names(table_of([{"text": "t", "label": 1}] * 9, "f"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "no rows"),
        ("a.jsonl", '{"text": 1}\n{oops', "line 2: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected a JSON object, got list"),
        ("a.json", '{"a": 1}', "expected a list of objects"),
        ("a.csv", "text,label\nonly\n", "record 2: other number of fields"),
        ("a.parquet", "nonsense", "not a parquet file"),
        ("a.txt", "hello", "unknown kind of file '.txt'; known: .jsonl, .json, .csv, .parquet"),
        ("a.jsonl", '{"text": "a", "label": null}\n', "row 1: column 'label' is empty"),
    ],
)
def test_bad_files_are_named_with_the_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(str(path))
    assert str(path) in str(caught.value)


def test_missing_and_undecodable_files(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        read_rows("nowhere.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_rows(str(tmp_path / "latin.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither a directory saved by"):
        read_rows(str(tmp_path / "empty"))


def test_of_unpaired_preferences_what_is_wanted_is_trained():
    """TRL's layout for KTO: a prompt, a completion, and whether it is wanted."""
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": i % 3 > 0} for i in range(9)]
    table = table_of(rows, "rows")
    assert [row["completion"] for row in table.rows] == ["c1", "c2", "c4", "c5", "c7", "c8"]
    assert table.where(2) == "rows, row 5"
    assert "3 rows left out whose 'label' is false" in table.described()
    numbered = table_of([{**row, "label": int(row["label"])} for row in rows], "rows")  # may mean anything
    assert len(numbered.rows) == 9
    assert "not used: 'label'" in numbered.described()
    with pytest.raises(DataError, match="column 'label' is false in every row, so that no response is wanted"):
        table_of([{**row, "label": False} for row in rows], "rows")


def test_too_few_rows():
    with pytest.raises(DataError, match="7 samples; at least 8 are needed"):
        require_rows(table_of(ROWS[:7], "f"))


def test_columns_that_are_not_used_are_said():
    rows = [{"text": "a b", "stars": i % 5, "id": i} for i in range(9)]
    assert table_of(rows, "f").described() == "text: text = 'text'; not used: 'stars', 'id'"


def test_rows_must_be_dicts():
    with pytest.raises(DataError, match=r"rows are to be dicts such as \{'text': ...\}, got str"):
        table_of(["a b", "c"], "list")
