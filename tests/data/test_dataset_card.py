"""A cloned Hub dataset is read as the head of its README.md says: the files of a split, and the names of classes."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from layersift.data import rows as reading
from layersift.data.images import ClassName
from layersift.data.rows import read_rows, split_counts
from layersift.errors import DataError


def clone(directory, head, **files):
    (directory / "README.md").write_text(f"---\n{head}---\n# A data set\n---\nmore\n---\n")
    for name, count in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        if path.suffix == "":
            path = path.with_suffix(".jsonl")
        path.write_text("".join(json.dumps({"text": f"w{i} {name}", "label": i % 2}) + "\n" for i in range(count)))
    return str(directory)


@pytest.mark.parametrize(
    "files",
    [
        "data_files: [{split: train, path: a.jsonl}, {split: test, path: b.jsonl}]",
        "data_files: [{split: train, path: [a.jsonl]}, {split: test, path: ['b*']}]",
        "data_files: {train: a.jsonl, test: [b.jsonl]}",
    ],
)
def test_the_files_of_a_split_are_those_that_the_card_names(tmp_path, files):
    """Their names tell of no split, and all of them would be read for each."""
    source = clone(tmp_path, f"configs:\n- config_name: default\n  {files}\n", a=5, b=3)
    assert [row["text"] for row in read_rows(source, "test")] == ["w0 b", "w1 b", "w2 b"]
    assert len(read_rows(source, "train")) == 5
    assert split_counts(source, "test")
    with pytest.raises(DataError, match=r"README.md names no files of split 'validation', but of: train, test"):
        read_rows(source, "validation")


def test_of_several_configurations_one_is_asked_for(tmp_path):
    """As of a clone of GLUE, or of one with a folder a language: read together they would be one table."""
    head = "configs:\n- config_name: en\n  data_files: en/*\n- config_name: de\n  data_files: de/*\n"
    source = clone(tmp_path, head, en__train=5, de__train=3)
    with pytest.raises(DataError, match=r"2 configurations \(en, de\); give the files of one, such as .*/en/\*"):
        read_rows(source)
    assert len(read_rows(f"{source}/en/*")) == 5
    clone(tmp_path, head.replace("- config_name: de", "- config_name: de\n  default: true"))
    assert len(read_rows(source)) == 3


@pytest.mark.parametrize("path", ["../other.jsonl", "/etc/passwd", "hf://datasets/a/b/x.jsonl", "''"])
def test_files_that_are_not_in_the_directory_are_not_read(tmp_path, path):
    (tmp_path / "other.jsonl").write_text('{"text": "w1", "label": 0}\n')
    (tmp_path / "clone").mkdir()
    source = clone(tmp_path / "clone", f"configs:\n- config_name: x\n  data_files: [{path}]\n", a=5)
    with pytest.raises(DataError, match="not in its directory"):
        read_rows(source)


@pytest.mark.parametrize("names", ["['no', 'yes']", "{'0': 'no', '1': 'yes'}"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_classes_have_the_names_that_the_card_gives_them(tmp_path, names, suffix):
    columns = "  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n        names: "
    head = f"dataset_info:\n  features:\n{columns}{names}\n"
    source = clone(tmp_path, head)
    rows = [{"text": f"w{i}", "label": i % 2} for i in range(4)]
    path = tmp_path / f"train{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = [row["label"] for row in read_rows(source)]
    assert labels == ["no", "yes", "no", "yes"]
    assert [(type(label), label.place) for label in labels[:2]] == [(ClassName, 0), (ClassName, 1)]


@pytest.mark.parametrize(
    "head",
    ["configs: 3\n", "a: [b\n", "configs: [1, x]\n", "dataset_info: {features: 3}\n", "dataset_info: [1]\n", "- 1\n"],
)
def test_a_head_that_says_something_else_changes_nothing(tmp_path, head):
    assert len(read_rows(clone(tmp_path, head, train=4))) == 4


def test_a_parquet_file_that_unpacks_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    """A dictionary holds a text once, however many rows say it."""
    monkeypatch.setattr(reading, "MOST_UNPACKED", 1 << 20)
    path = tmp_path / "bomb.parquet"
    for column in (["x" * 1000] * 100_000, [None] * 300_000):
        pyarrow.parquet.write_table(pa.table({"text": pa.array(column, pa.string())}), path, compression="zstd")
        with pytest.raises(DataError, match="unpacks to more than"):
            read_rows(str(path))
    pyarrow.parquet.write_table(pa.table({"text": [f"w{i} {i * i}" for i in range(5000)]}), path)
    assert len(read_rows(str(path))) == 5000
