"""Every reader of files meets files that chance has damaged: it reads them, or refuses them in one line."""

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bad import place as places
from layersift.adapt import store
from layersift.config.recipe import ModelSource, read_recipe
from layersift.data.encode import Encoder, encode_sample
from layersift.data.images import open_image
from layersift.data.rows import read_rows
from layersift.data.table import Columns, table_of
from layersift.errors import LayersiftError
from layersift.models.load import empty_model, load_model, load_tokenizer
from layersift.records.runs import Result, RunRecord
from layersift.records.selection import Selection
from layersift.score.registry import find_criterion
from tiny import tiny
from words import tokenizer

pytestmark = pytest.mark.slow
EXAMPLES = 600
JSON = ["null", "true", "[]", "{}", '""', "-1", "1e400", "NaN", '"\\ud800"', "9" * 400, "0.5", "[[[[[[]]]]]]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("place")
    places.make(directory)
    return directory


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A file with a few faults: bytes changed, taken out, put in, doubled, cut off, or a JSON value replaced."""
    found = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        if not found:
            break
        place, kind = chance.randrange(len(found)), chance.randrange(7)
        if kind == 0:
            found[place] = chance.randrange(256)
        elif kind == 1:
            del found[place : place + chance.choice([1, 2, 30, 500])]
        elif kind == 2:
            found[place:place] = chance.randbytes(chance.choice([1, 4, 60]))
        elif kind == 3:
            found[place:place] = found[place : place + chance.choice([5, 50, 500])]
        elif kind == 4:
            del found[place:]
        elif kind == 5:
            found[place] ^= 1 << chance.randrange(8)
        else:
            found = _another_value(found, chance)
    return bytes(found)


def _another_value(content: bytearray, chance: random.Random) -> bytearray:
    """Where the content is JSON, one of its values, however deep, becomes another."""
    try:
        root = json.loads(content)
    except ValueError:
        return content
    at = root
    while isinstance(at, dict | list) and at:
        key = chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))
        if not isinstance(at[key], dict | list) or not at[key] or chance.random() < 0.3:
            at[key] = "@@here@@"
            break
        at = at[key]
    return bytearray(json.dumps(root).replace('"@@here@@"', chance.choice(JSON)).encode())


def _tables(path: Path) -> None:
    table = table_of(read_rows(str(path)), str(path))
    classes = ("0", "1") if table.kind == "classification" else ()
    encode_sample(table, Encoder(tokenizer("decoder", chat=True), table.kind, classes), None, 0)


def _template(path: Path) -> None:
    rows = [{"prompt": "w1", "response": "w2"}] * 9
    given = path.read_bytes().decode("utf-8", "replace")
    encode_sample(
        table_of(rows, "rows", Columns(prompt="prompt", response="response")),
        Encoder(tokenizer("decoder"), "instruction", chat_template=given),
        None,
        0,
    )


def _model(path: Path) -> None:
    load_model(ModelSource(str(path.parent)), "classification", 2)


# By reader: the whole file, and how it is read.
READERS = {
    "rows.jsonl": ("rows.jsonl", _tables),
    "chat.jsonl": ("chat.jsonl", _tables),
    "rows.csv": ("good/rows.csv", _tables),
    "rows.json": ("good/rows.json", _tables),
    "rows.parquet": ("good/rows.parquet", _tables),
    "image": ("good/image.png", lambda path: open_image(str(path), str(path))),
    "template": ("llama/chat_template.jinja", _template),
    "recipe": ("recipe.yaml", lambda path: read_recipe(path)),
    "selection": ("selection.json", lambda path: Selection.load(path)),
    "record": ("run/layersift.json", lambda path: RunRecord.load(path.parent)),
    "result": ("good/result.json", lambda path: Result.load(path)),
    "rules": ("rules/short.py", lambda path: find_criterion(f"{path}:mine")),
    "config": ("bert/config.json", lambda path: empty_model(ModelSource(str(path.parent)))),
    "weights": ("bert/model.safetensors", _model),
    "tokenizer": ("bert/tokenizer.json", lambda path: load_tokenizer(ModelSource(str(path.parent)))),
    "tokenizer's configuration": (
        "bert/tokenizer_config.json",
        lambda path: load_tokenizer(ModelSource(str(path.parent))),
    ),
    "adapter": (
        "run/adapter_model.safetensors",
        lambda path: store.load(_for_classes(), "lora", path.parent),
    ),
    "adapter's configuration": (
        "run/adapter_config.json",
        lambda path: store.load(_for_classes(), "lora", path.parent),
    ),
}


def _for_classes():
    return tiny("bert")


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name, place, tmp_path):
    whole, read = READERS[name]
    _good(place)
    original = place / whole
    content = original.read_bytes()
    beside = tmp_path / "beside"
    if original.parent == place:
        beside.mkdir()
    else:
        shutil.copytree(original.parent, beside)
    file = beside / original.name

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**63))
    def check(seed):
        file.unlink(missing_ok=True)  # a new file, since weights are mapped into memory
        file.write_bytes(damaged(content, random.Random(seed)))
        before = sorted(beside.rglob("*"))
        refused = ""
        try:
            read(file)
        except LayersiftError as error:
            refused = str(error)
        assert "\n" not in refused
        assert len(refused) < places.LONGEST
        assert sorted(beside.rglob("*")) == before

    check()


def _good(place: Path) -> None:
    """The whole files that no table needs."""
    import datasets
    from PIL import Image

    good = place / "good"
    if good.exists():
        return
    good.mkdir()
    rows = places.labelled()
    (good / "rows.csv").write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows))
    (good / "rows.json").write_text(json.dumps(rows))
    datasets.Dataset.from_list(rows).to_parquet(good / "rows.parquet")
    Image.effect_noise((24, 24), 50).save(good / "image.png")
    cell = {"mask": "0101", "seed": 0}
    (good / "result.json").write_text(
        json.dumps({"cell": cell, "metrics": {"accuracy": 0.5}, "samples": 2, "outcomes": [0.0, 1.0]})
    )
