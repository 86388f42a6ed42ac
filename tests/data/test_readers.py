"""What a reader knows is not lost on the way: names, types, quotes, orientations, columns, and what is unknown."""

import json
from decimal import Decimal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from layersift.data.encode import Encoder, encode_rows
from layersift.data.images import open_image
from layersift.data.rows import read_rows
from layersift.data.table import class_names, read_table, table_of
from layersift.errors import DataError
from words import tokenizer

NAMES = ["entailment", "neutral", "contradiction"]


def text(i, words=8):
    return " ".join(f"w{(i * 7 + j * 3 + i * j) % 40}" for j in range(words))


def named(labels):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({"text": list(map(text, range(len(labels)))), "label": labels}, features=features)


@pytest.mark.parametrize("form", ["saved", "splits", "parquet", "folder"])
def test_names_of_classes_are_read_with_their_numbers(tmp_path, form):
    data = named([i % 3 for i in range(12)])
    if form == "saved":
        data.save_to_disk(tmp_path / "d")
    elif form == "splits":
        datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "d")
    elif form == "parquet":
        data.to_parquet(tmp_path / "d")
        (tmp_path / "d").rename(tmp_path / "d.parquet")
    else:
        (tmp_path / "d").mkdir()
        data.to_parquet(tmp_path / "d" / "train-00000-of-00001.parquet")
    table = read_table(str(tmp_path / ("d.parquet" if form == "parquet" else "d")))
    assert [row["label"] for row in table.rows] == [NAMES[i % 3] for i in range(12)]
    head = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")  # another order than the data's
    assert class_names(table, head) == ("contradiction", "neutral", "entailment")


def test_a_class_without_a_label_or_a_name_is_refused(tmp_path):
    named([0, 1, -1, 2] * 3).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match="row 3: column 'label' is empty"):
        read_table(str(tmp_path / "d"))


def test_numbers_on_a_named_head_are_said_to_be_its_places(caplog):
    table = table_of([{"text": text(i), "label": i % 3} for i in range(12)], "rows")
    assert class_names(table, NAMES) == ("0", "1", "2")
    assert "places of the model's head, which calls them entailment" in caplog.text


SCORES = [round((i * 37 % 500) / 100, 2) for i in range(40)]
NUMBERS = [float, np.float64, np.float32, np.float16, lambda v: Decimal(str(v)), torch.tensor, np.array]


@pytest.mark.parametrize("number", NUMBERS, ids=["float", "64", "32", "16", "Decimal", "torch", "array"])
def test_numbers_of_every_type_are_numbers(number):
    table = table_of([{"text": text(i), "score": number(v)} for i, v in enumerate(SCORES)], "rows")
    assert table.kind == "regression"
    assert [row["score"] for row in table.rows] == pytest.approx(SCORES, rel=1e-3)


@pytest.mark.parametrize("kind", [pa.decimal128(4, 2), pa.float32(), pa.float16()], ids=str)
def test_numbers_of_every_type_in_parquet_are_numbers(tmp_path, kind):
    values = [Decimal(str(v)) if pa.types.is_decimal(kind) else np.float16(v) for v in SCORES]
    table = pa.table({"text": [text(i) for i in range(40)], "score": pa.array(values, kind)})
    pq.write_table(table, tmp_path / "d.parquet")
    read = read_table(str(tmp_path / "d.parquet"))
    assert read.kind == "regression"
    assert [row["score"] for row in read.rows] == pytest.approx(SCORES, abs=4e-3)


@pytest.mark.parametrize("number", [int, np.int64, np.int8, np.uint8, torch.tensor, float, str, Decimal])
def test_whole_numbers_of_every_type_are_the_same_classes(number):
    table = table_of([{"text": text(i), "label": number(i % 2)} for i in range(12)], "rows")
    assert table.kind == "classification"
    assert class_names(table) == ("0", "1")


@pytest.mark.parametrize("number", [int, np.int64, float, np.float32, str])
def test_the_mark_of_no_label_is_refused_in_every_type(number):
    with pytest.raises(DataError, match="-1 beside 0"):
        table_of([{"text": text(i), "label": number(i % 3 - 1)} for i in range(12)], "rows")


def test_truths_of_numpy_are_truths():
    table = table_of([{"text": text(i), "label": np.bool_(i % 2)} for i in range(12)], "rows")
    assert class_names(table) == ("False", "True")


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (['w1 "w2" w3,0'] * 3 + ['"w4" w5,1'] + ["w6,0"] * 5, 5),  # a quote that ends before the field does
        (["w1,0"] * 3 + ['"w4 w5,1'] + ["w6,0"] * 5, 5),  # a quote that is never closed
        (['"w1\nw2",0'] * 2 + ['"w4,1'] + ["w6,0"] * 5, 6),  # lines within fields count
    ],
)
def test_a_quote_that_swallows_lines_is_refused_with_its_line(tmp_path, lines, line):
    path = tmp_path / "d.csv"
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"d.csv, lines? {line}\b"):
        read_rows(str(path))


def test_blanks_around_names_in_a_header_are_no_part_of_them(tmp_path):
    (tmp_path / "d.csv").write_text("text, label\n" + "".join(f"{text(i)},{i % 2}\n" for i in range(12)))
    assert read_table(str(tmp_path / "d.csv")).kind == "classification"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_people_see_them(tmp_path, orientation):
    pixels = np.zeros((6, 8, 3), dtype=np.uint8)
    pixels[:3, :4, 0] = 255
    turned = {2: [(np.fliplr, ())], 3: [(np.rot90, (2,))], 4: [(np.flipud, ())]}
    turned |= {5: [(np.rot90, (3,)), (np.fliplr, ())], 6: [(np.rot90, (3,))], 8: [(np.rot90, (1,))]}
    turned |= {7: [(np.rot90, (1,)), (np.fliplr, ())]}
    seen = pixels
    for turn, how in turned.get(orientation, []):
        seen = turn(seen, *how)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(open_image("a.png", str(tmp_path))), seen)
    assert np.array_equal(np.asarray(open_image(Image.open(tmp_path / "a.png"), str(tmp_path))), seen)


def pictures(folder, count=4):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(folder / f"{i}.png")


def test_folders_of_classes_beside_a_file_of_data_are_refused(tmp_path):
    for name in ("cat", "dog"):
        pictures(tmp_path / name)
    assert len(read_rows(str(tmp_path))) == 8
    (tmp_path / "notes.csv").write_text("text,label\na,b\n")
    with pytest.raises(DataError, match=r"notes\.csv"):
        read_rows(str(tmp_path))


@pytest.mark.parametrize("where", ["", "train"])
def test_file_names_of_image_folders_are_images(tmp_path, where):
    pictures(tmp_path / where / "images")
    rows = [{"file_name": f"images/{i}.png", "text": text(i)} for i in range(4)]
    (tmp_path / where / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_rows(str(tmp_path))
    assert [row["text"] for row in read] == [row["text"] for row in rows]
    assert all(open_image(row["image"], str(tmp_path)).size == (8, 8) for row in read)


def test_splits_may_be_folders(tmp_path):
    for split, word in (("train", "w1"), ("test", "w2")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "data.jsonl").write_text(json.dumps({"text": word}) + "\n")
    assert read_rows(str(tmp_path), "test") == [{"text": "w2"}]


LAYOUTS = {
    "sentiment": lambda i: {"review": text(i), "sentiment": "positive" if i % 2 else "negative"},
    "coarse_label": lambda i: {"text": text(i), "coarse_label": i % 6, "fine_label": i % 20},
    "airline_sentiment": lambda i: {"tweet_id": i, "airline_sentiment": "neutral", "text": text(i)},
    "rating": lambda i: {"rating": 1 + i % 5, "title": text(i, 2), "text": text(i)},
    " label": lambda i: {"text": text(i), " label": i % 2},
    "premise": lambda i: {"premise": text(i), "choice1": text(i, 3), "question": f"w{i % 2}", "label": i % 2},
    "answer": lambda i: {"sentence": text(i), "option1": "w1", "option2": "w2", "answer": str(1 + i % 2)},
    "correct": lambda i: {"question": text(i), "options": ["A)1", "B)2"], "rationale": text(i + 3), "correct": "B"},
    "background": lambda i: {"background": text(i, 20), "prompt": text(i + 1), "response": "w1"},
    "paragraphs": lambda i: {"title": f"w{i} w1", "paragraphs": [{"context": text(i)}]},
    "mood": lambda i: {"content": text(i), "mood": ["glad", "sad", "calm"][i % 3]},
    "is_spam": lambda i: {"text": text(i), "is_spam": bool(i % 2)},
    "turns": lambda i: {"text": text(i), "turns": [{"role": "user", "content": "w1"}]},
}


@pytest.mark.parametrize("column", LAYOUTS)
def test_a_column_that_looks_meant_is_not_passed_over(column):
    rows = [LAYOUTS[column](i) for i in range(40)]
    with pytest.raises(DataError, match=column):
        table_of(rows, "rows")


@pytest.mark.parametrize(
    "beside",
    [
        {"id": 3},
        {"url": "https://x.org/1", "timestamp": "2020"},
        {"source": "wiki"},
        {"lang": "en", "meta": {"a": 1}},
        {"title": "w1 w2"},
    ],
    ids=str,
)
def test_what_a_text_is_about_is_no_label(beside):
    rows = [{"text": text(i), **beside} for i in range(40)]
    assert table_of(rows, "rows").kind == "text"
    assert table_of([{**row, "mood": "glad"} for row in rows], "rows", kind="text").kind == "text"


def test_a_tokenizer_that_cuts_on_the_left_reads_the_end_of_long_texts():
    tok = tokenizer("encoder")
    tok.truncation_side = "left"
    long = " ".join(f"w{i % 30}" for i in range(5000)) + " w38 w39"
    example, cut = Encoder(tok, "text", max_length=8).encode(table_of([{"text": long}], "rows"), 0)
    assert cut
    assert tok.decode(example.input_ids).split()[-3:-1] == ["w38", "w39"]


@pytest.mark.parametrize("unknown", [0, 2, 8])
def test_text_that_the_vocabulary_lacks_is_told_or_refused(unknown, caplog):
    rows = [{"text": " ".join([f"żó{i}"] * unknown + ["w1"] * (8 - unknown))} for i in range(12)]
    encoder, table = Encoder(tokenizer("encoder"), "text", max_length=16), table_of(rows, "rows")
    if unknown == 8:
        with pytest.raises(DataError, match="knows nothing of the text"):
            encode_rows(table, encoder, range(12), distinct=True)
        return
    encode_rows(table, encoder, range(12))
    assert ("25%" in caplog.text) == bool(unknown)
