"""Every layout of docs/layouts.md is read as the page says, and files as people have them are read whole."""

import gzip
import json
import re

import pytest
from datasets import Dataset

from layersift.config.recipe import Columns
from layersift.data.chat.conversation import conversation_of
from layersift.data.table import read_table, table_of
from layersift.errors import DataError
from layouts import LAYOUTS, PAGE, page, what_is_read


def test_the_page_says_what_is_read():
    assert PAGE.read_text() == page(), "run python tests/helpers/layouts.py"


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_of_a_layout_is_lost(name):
    """Every text of a row comes out, but for columns that are named as not used."""
    said = what_is_read(LAYOUTS[name])
    unused = set(re.findall(r"'(\w+)'", said.partition("not used:")[2].partition("\n")[0]))

    def texts(value, key=""):
        if isinstance(value, dict):
            for inner, each in value.items():
                if inner not in ("role", "from", "type", "label", "answerKey", "weight", *unused):
                    yield from texts(each, inner)
        elif isinstance(value, list):
            for each in value:
                yield from texts(each, key)
        elif isinstance(value, str):
            yield value

    for row in LAYOUTS[name]:
        for text in texts(row):
            assert text in said, text


@pytest.mark.parametrize(
    "name", [n for n in LAYOUTS if n not in ("Alpaca", "LLaMA-Factory", "ShareGPT", "Messages in parts")]
)
def test_arrow_says_the_same(name):
    """Arrow gives every message the keys of all of them, with nothing in those that it lacks."""
    rows = LAYOUTS[name]
    arrow = Dataset.from_list(rows).to_list()
    assert what_is_read(arrow) == what_is_read(rows)


def read_first(rows, given):
    table = table_of(rows, "rows", Columns(**given))
    return conversation_of(table.rows[0], table.columns, table.where(0))


@pytest.mark.parametrize(
    ("rows", "given", "said"),
    [
        (
            [{"prompt": {"a": 1}, "completion": "x"}],
            {},
            "row 1: column 'prompt' holds {'a': 1}; a text or chat messages",
        ),
        ([{"prompt": "a", "completion": True}], {}, "row 1: column 'completion' holds True"),
        ([{"prompt": "a", "completion": 4}], {}, "row 1: column 'completion' holds 4"),
        ([{"prompt": "a", "completion": ["x"]}], {}, r"row 1: column 'completion' holds \['x'\]"),
        ([{"instruction": "a", "input": 3, "output": "x"}], {}, "row 1: column 'input' holds 3"),
        ([{"instruction": "a", "output": "x", "history": ["q"]}], {}, "row 1: column 'history' holds"),
        ([{"messages": [{"role": "user", "content": 3}]}], {}, "the content of 'user' is 3"),
        ([{"messages": [{"role": "user", "content": [{"type": "audio"}]}]}], {}, "has the part .*texts and images"),
        ([{"messages": "a"}], {}, "expected a list of messages, got 'a'"),
        ([{"question": "q", "context": "c", "answers": {"text": []}}], {}, "row 1: column 'answers' has no answer"),
        ([{"chosen": "a", "rejected": "b"}], {}, "preferences without a prompt need chat messages in 'chosen'"),
        ([{"tokens": ["a"], "ner_tags": [1]}], {}, "token classification is not supported"),
        ([{"input_ids": [1], "labels": [1]}], {}, "rows of token ids"),
        (
            [{"text": "a", "label": 1, "messages": 1}],
            {"label": "label", "messages": "messages"},
            "no columns for any task",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_row(rows, given, said):
    with pytest.raises(DataError, match=said):
        read_first(rows, given)


def test_columns_are_those_of_all_rows():
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "input": "d", "output": "e", "note": "f"}]
    table = table_of(rows, "rows")
    assert table.columns.context == "input"
    assert "not used: 'note'" in table.described()


def test_a_flag_that_cannot_be_honoured_is_refused():
    rows = [{"text": "a", "label": 0, "image": "x.png"}]
    with pytest.raises(DataError, match=r"column 'image' was given, but as .* there is no use for it"):
        table_of(rows, "rows", Columns(text="text", label="label", image="image"))


ROWS = [{"text": f"text {i}", "label": i % 2} for i in range(12)]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
        return
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def test_shards_globs_and_compressed_files(tmp_path):
    for number in range(3):
        write(tmp_path / "data" / f"train-0000{number}-of-00003.parquet", ROWS[4 * number : 4 * number + 4])
    write(tmp_path / "data" / "test-00000-of-00001.parquet", ROWS[:3])
    assert [dict(row) for row in read_table(str(tmp_path)).rows] == ROWS
    assert len(read_table(str(tmp_path), split="test").rows) == 3
    assert len(read_table(str(tmp_path / "data" / "train-*.parquet")).rows) == 12
    with pytest.raises(DataError, match="has no split 'validation'; it has: test, train"):
        read_table(str(tmp_path), split="validation")
    with pytest.raises(DataError, match="no file is named so"):
        read_table(str(tmp_path / "nothing*.parquet"))
    write(tmp_path / "rows.jsonl.gz", ROWS)
    assert len(read_table(str(tmp_path / "rows.jsonl.gz")).rows) == 12
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "rows.jsonl.gz").read_bytes()[:40])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz"):
        read_table(str(tmp_path / "cut.jsonl.gz"))
