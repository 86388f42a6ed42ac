"""Types by readers: whatever numbers and names a source holds, the same rows are the same task with its classes."""

import datetime
import decimal
import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from layersift.data.encode import Encoder, encode_rows
from layersift.data.images import ClassName, open_image, plain
from layersift.data.rows import read_rows
from layersift.data.table import class_counts, class_names, read_table, table_of
from layersift.errors import DataError
from words import tokenizer

SCORES = [0.25 * (i % 5) + 0.5 for i in range(20)]
TEXTS = [f"w{i} w{i + 1}" for i in range(20)]
NUMBERS = {
    "decimal": lambda v: decimal.Decimal(f"{v:.2f}"),
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
    "float": float,
    "text": str,
}


def parquet(path, label, kind):
    table = pa.table({"text": TEXTS, "label": pa.array(label, kind)})
    pyarrow.parquet.write_table(table, path)
    return str(path)


@pytest.mark.parametrize("number", NUMBERS)
def test_scores_are_a_regression_whatever_their_type(number):
    rows = [{"text": t, "label": NUMBERS[number](v)} for t, v in zip(TEXTS, SCORES, strict=True)]
    table = table_of(rows, "rows")
    assert table.kind == "regression"
    assert [row["label"] for row in table.rows] == SCORES
    assert all(type(row["label"]) is float for row in table.rows)


@pytest.mark.parametrize("kind", [pa.decimal128(5, 2), pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_scores_of_parquet_are_a_regression(kind, tmp_path):
    values = [decimal.Decimal(f"{v:.2f}") for v in SCORES] if pa.types.is_decimal(kind) else SCORES
    values = [np.float16(v) for v in values] if kind == pa.float16() else values
    table = read_table(parquet(tmp_path / "rows.parquet", values, kind))
    assert (table.kind, [row["label"] for row in table.rows]) == ("regression", SCORES)


@pytest.mark.parametrize(
    "made", [int, float, np.int64, np.int8, np.float32, lambda v: f"{v}", lambda v: f"{v}.0", decimal.Decimal]
)
def test_zero_and_one_are_the_same_classes_in_every_type(made):
    table = table_of([{"text": t, "label": made(i % 2)} for i, t in enumerate(TEXTS)], "rows")
    assert class_names(table) == ("0", "1")
    assert class_counts(table) == {"0": 10, "1": 10}


def test_numbers_that_mark_no_label_are_seen_in_every_type():
    for made in (int, np.int64, np.int32, decimal.Decimal):
        with pytest.raises(DataError, match="-1 beside 0"):
            table_of([{"text": t, "label": made(i % 3 - 1)} for i, t in enumerate(TEXTS)], "rows")


def test_what_an_older_run_calls_a_class_is_still_known():
    table = table_of([{"text": t, "label": float(i % 2)} for i, t in enumerate(TEXTS)], "rows")
    for classes in (("0", "1"), ("0.0", "1.0")):
        encoder = Encoder(tokenizer(), "classification", classes)
        assert [encoder.encode(table, i)[0].label for i in range(4)] == [0, 1, 0, 1]
    named = table_of([{"text": t, "label": ClassName("ab"[i % 2], i % 2)} for i, t in enumerate(TEXTS)], "rows")
    assert [Encoder(tokenizer(), "classification", ("0", "1")).encode(named, i)[0].label for i in range(2)] == [0, 1]


def test_cells_are_plain_at_every_depth():
    given = {"a": np.int64(3), "b": [np.float32(0.5), {"c": np.array([1, 2])}], "d": decimal.Decimal("4")}
    read = plain(given)
    assert json.dumps(read) == '{"a": 3, "b": [0.5, {"c": [1, 2]}], "d": 4}'


NAMES = ["zebra", "ant", "mouse"]  # in an order that is not by spelling


@pytest.fixture
def labelled():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({"text": TEXTS, "label": [i % 3 for i in range(20)]}, features=features)


@pytest.mark.parametrize("reader", ["directory", "parquet", "splits"])
def test_names_of_classes_are_read_with_their_order(reader, labelled, tmp_path):
    if reader == "directory":
        labelled.save_to_disk(str(tmp_path / "data"))
    elif reader == "splits":
        datasets.DatasetDict({"train": labelled}).save_to_disk(str(tmp_path / "data"))
    else:
        labelled.to_parquet(str(tmp_path / "data.parquet"))
    table = read_table(str(tmp_path / ("data.parquet" if reader == "parquet" else "data")))
    assert class_names(table) == tuple(NAMES)
    assert [row["label"] for row in table.rows[:4]] == ["zebra", "ant", "mouse", "zebra"]
    assert class_names(table, ("ant", "mouse", "zebra")) == ("ant", "mouse", "zebra")  # a head's own order wins


def test_a_label_that_is_marked_as_missing_has_no_name(labelled, tmp_path):
    rows = labelled.to_list()
    rows[3]["label"] = -1
    marked = datasets.Dataset.from_list(rows, features=labelled.features)
    marked.to_parquet(str(tmp_path / "data.parquet"))
    with pytest.raises(DataError, match="row 4: column 'label' is empty"):
        read_table(str(tmp_path / "data.parquet"))


def test_numbers_taken_for_the_places_of_a_named_head_are_told(caplog):
    table = table_of([{"text": t, "label": i % 2} for i, t in enumerate(TEXTS)], "rows")
    assert class_names(table, ("contradiction", "entailment")) == ("0", "1")
    assert "taken for the places of the model's head" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('text,label\nw1,0\n"w2 says, 1\nw3,0\n', "lines 3 to 4"),
        ('text,label\n"w1" w2,0\nw3,1\n', "line 2"),
        ('text,label\nw1,0\n"w2,1\n"w3,0\n', "lines 3 to 4"),
        ("text,text,label\nw1,w2,0\n", "'text' twice"),
    ],
)
def test_quotes_that_swallow_lines_are_refused_with_their_line(content, said, tmp_path):
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        read_rows(str(tmp_path / "rows.csv"))


def test_well_formed_csv_is_read_as_it_was(tmp_path):
    (tmp_path / "rows.csv").write_text(' text , label\n"a ""b"", c\nd",0\n\nw2,1\n')
    assert read_rows(str(tmp_path / "rows.csv")) == [
        {"text": 'a "b", c\nd', "label": "0"},
        {"text": "w2", "label": "1"},
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_read_as_people_see_them(orientation, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    expected = np.array(datasets.Image().decode_example({"path": str(tmp_path / "photo.png"), "bytes": None}))
    content = (tmp_path / "photo.png").read_bytes()
    for given in ("photo.png", {"bytes": content, "path": None}, Image.open(io.BytesIO(content))):
        assert (np.array(open_image(given, str(tmp_path))) == expected).all()


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, 0, 0)).save(path)


def test_class_folders_beside_a_stray_file_are_not_passed_over(tmp_path):
    for i in range(4):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", i)
    assert len(read_rows(str(tmp_path))) == 4
    (tmp_path / "notes.csv").write_text("text,label\nw1,0\n")
    with pytest.raises(DataError, match=r"4 images in 2 folders, and data files that do not name them.*notes\.csv"):
        read_rows(str(tmp_path))
    (tmp_path / "notes.csv").write_text("image,label\na/0.png,0\n")
    assert read_rows(str(tmp_path)) == [{"image": "a/0.png", "label": "0"}]


@pytest.mark.parametrize("given", ["directory", "file"])
def test_an_image_folders_file_names_are_its_images(given, tmp_path):
    for split in ("train", "test"):
        rows = [{"file_name": f"{split}{i}.png", "label": i % 2} for i in range(4)]
        for i, row in enumerate(rows):
            picture(tmp_path / split / row["file_name"], i)
        (tmp_path / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = tmp_path if given == "directory" else tmp_path / "train" / "metadata.jsonl"
    table = read_table(str(source))
    assert len(table.rows) == 4
    assert table.columns.image == "image"
    assert len({open_image(row["image"], str(source)).getpixel((0, 0)) for row in table.rows}) == 4


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_cut_is_what_the_tokenizer_cuts(side):
    tok = tokenizer()
    tok.truncation_side = side
    long = " ".join(f"w{i % 40}" for i in range(3000))
    table = table_of([{"text": long, "label": i % 2} for i in range(4)], "rows")
    (example, _) = Encoder(tok, "classification", ("0", "1"), 32).encode(table, 0)
    assert list(example.input_ids) == tok(long, truncation=True, max_length=32)["input_ids"]


def test_text_that_the_tokenizer_does_not_know_is_told_as_that():
    rows = [{"text": f"привет {'абвгдежзиклм'[i]}", "label": i % 2} for i in range(12)]
    table = table_of(rows, "rows")
    with pytest.raises(DataError, match="the tokenizer knows nothing of the text"):
        encode_rows(table, Encoder(tokenizer(), "classification", ("0", "1")), range(12), distinct=True)


def test_classes_that_differ_in_the_case_of_letters_alone_are_told(caplog):
    rows = [{"text": t, "label": ["pos", "neg", "Pos"][i % 3]} for i, t in enumerate(TEXTS)]
    assert len(class_counts(table_of(rows, "rows"))) == 3
    assert "'pos' and 'Pos', which are two classes" in caplog.text


@pytest.mark.parametrize("label", [b"a", datetime.date(2020, 1, 1), datetime.timedelta(1)])
def test_what_is_neither_text_nor_number_is_no_class(label):
    rows = [{"text": t, "label": label if i % 2 else "b"} for i, t in enumerate(TEXTS)]
    with pytest.raises(DataError, match=r"row 2: column 'label' holds .*; a text or a number is needed"):
        table_of(rows, "rows")
