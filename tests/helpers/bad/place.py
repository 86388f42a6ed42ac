"""A directory in which everything that a user can get wrong lies side by side, whole and damaged."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bad import wrong
from tiny import tiny
from words import tokenizer

LONGEST = 400  # characters of a message
ADAPTER = "adapter_model.safetensors"


def sentences(count=24, length=8, words=40):
    rng = np.random.default_rng(2)
    return [" ".join(f"w{w}" for w in rng.integers(0, words, rng.integers(2, length))) for _ in range(count)]


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def labelled(count=24):
    return [{"text": text, "label": i % 2} for i, text in enumerate(sentences(count))]


def prompted(count=16):
    return [{"prompt": text, "response": text} for text in sentences(count)]


def edited(path, **changes):
    """Change entries of a JSON file; None in the place of a value takes it out."""
    values = json.loads(path.read_text())
    for key, value in changes.items():
        values[key] = value
        if value is REMOVED:
            del values[key]
    path.write_text(json.dumps(values))


REMOVED = object()
DEEP = "[" * 100_000


def cut(path, keep=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def of_weights(change, file="model.safetensors"):
    def damage(directory):
        path = directory / file
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def config(**changes):
    return lambda directory: edited(directory / "config.json", **changes)


def text(name, content):
    return lambda directory: (directory / name).write_text(content)


def without(*names):
    return lambda directory: [(directory / name).unlink() for name in names]


def tokenizer_config(**changes):
    return lambda directory: edited(directory / "tokenizer_config.json", **changes)


def _pickled(directory):
    tensors = load_file(directory / "model.safetensors")
    torch.save(tensors, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def _sharded(content):
    def damage(directory):
        (directory / "model.safetensors").unlink()
        (directory / "model.safetensors.index.json").write_text(content)

    return damage


def _as_directory(name):
    def damage(directory):
        (directory / name).unlink()
        (directory / name).mkdir()

    return damage


def _larger_tokenizer(directory):
    values = json.loads((directory / "tokenizer.json").read_text())
    values["model"]["vocab"] |= {f"w{i}": 100 + i for i in range(40)}
    (directory / "tokenizer.json").write_text(json.dumps(values))


def _poison(value, key="layer.1.output.dense.weight"):
    def change(tensors):
        next(t for name, t in tensors.items() if key in name)[0, 0] = value

    return of_weights(change)


def _rename(tensors):
    for name in list(tensors):
        tensors[f"other.{name}"] = tensors.pop(name)


def _drop(part):
    def change(tensors):
        for name in [n for n in tensors if part in n]:
            del tensors[name]

    return of_weights(change)


def _reshape(tensors):
    name = next(n for n in tensors if "layer.0.attention.self.query.weight" in n)
    tensors[name] = tensors[name][:-1].clone()


def _header(length, content=b""):
    return lambda directory: (directory / "model.safetensors").write_bytes(length.to_bytes(8, "little") + content)


# What is done to a copy of a good model, by the name of the copy. All of them copies of `bert`.
MODELS = {
    "config-empty": text("config.json", ""),
    "config-list": text("config.json", "[]"),
    "config-nothing-in-it": text("config.json", "{}"),
    "config-null": text("config.json", "null"),
    "config-number": text("config.json", "3"),
    "config-text": text("config.json", '"bert"'),
    "config-deep": text("config.json", DEEP),
    "config-binary": lambda d: (d / "config.json").write_bytes(bytes(range(256))),
    "config-cut": lambda d: cut(d / "config.json"),
    "config-latin": lambda d: (d / "config.json").write_bytes('{"model_type": "bért"}'.encode("latin-1")),
    "config-directory": _as_directory("config.json"),
    "config-gone": without("config.json"),
    "config-digits": text("config.json", '{"model_type": "bert", "num_hidden_layers": ' + "9" * 5000 + "}"),
    "type-gone": config(model_type=REMOVED),
    "type-unknown": config(model_type="no-such-model"),
    "type-number": config(model_type=3),
    "type-list": config(model_type=["bert"]),
    "type-null": config(model_type=None),
    "type-empty": config(model_type=""),
    "layers-negative": config(num_hidden_layers=-1),
    "layers-none": config(num_hidden_layers=0),
    "layers-one-more": config(num_hidden_layers=5),
    "layers-text": config(num_hidden_layers="six"),
    "layers-null": config(num_hidden_layers=None),
    "layers-fraction": config(num_hidden_layers=1.5),
    "layers-million": config(num_hidden_layers=10**6),
    "layers-list": config(num_hidden_layers=[4]),
    "hidden-zero": config(hidden_size=0),
    "hidden-negative": config(hidden_size=-32),
    "hidden-text": config(hidden_size="wide"),
    "hidden-indivisible": config(hidden_size=33),
    "hidden-huge": config(hidden_size=2**40),
    "heads-zero": config(num_attention_heads=0),
    "heads-text": config(num_attention_heads="four"),
    "vocabulary-zero": config(vocab_size=0),
    "vocabulary-negative": config(vocab_size=-5),
    "vocabulary-null": config(vocab_size=None),
    "vocabulary-other": config(vocab_size=77),
    "positions-zero": config(max_position_embeddings=0),
    "inner-text": config(intermediate_size="large"),
    "epsilon-text": config(layer_norm_eps="small"),
    "epsilon-nan": config(layer_norm_eps=float("nan")),
    "dropout-two": config(hidden_dropout_prob=2.0),
    "activation-unknown": config(hidden_act="no-such-activation"),
    "activation-number": config(hidden_act=5),
    "architectures-text": config(architectures="BertModel"),
    "architectures-number": config(architectures=[7]),
    "architectures-unknown": config(architectures=["NoSuchModel"], model_type="no-such-type"),
    "architectures-module": config(architectures=["models"]),
    "architectures-function": config(architectures=["pipeline"]),
    "architectures-tokenizer": config(architectures=["BertTokenizer"]),
    "quantized-unknown": config(quantization_config={"quant_method": "nonsense"}),
    "quantized-text": config(quantization_config="4 bits"),
    "quantized-empty": config(quantization_config={}),
    "dtype-unknown": config(dtype="float99"),
    "attention-unknown": config(_attn_implementation="no_such_kernel", attn_implementation="no_such_kernel"),
    "code-wanted": config(model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}),
    "weights-cut": lambda d: cut(d / "model.safetensors"),
    "weights-cut-in-the-header": lambda d: cut(d / "model.safetensors", 0.001),
    "weights-empty": lambda d: (d / "model.safetensors").write_bytes(b""),
    "weights-noise": lambda d: (d / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(5000)),
    "weights-text": text("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
    "weights-header-long": _header(2**40, b"{}"),
    "weights-header-list": _header(2, b"[]"),
    "weights-header-wrong": _header(9, b'{"a": {}}'),
    "weights-gone": without("model.safetensors"),
    "weights-directory": _as_directory("model.safetensors"),
    "weights-pickled": _pickled,
    "weights-index-broken": _sharded("{"),
    "weights-index-list": _sharded("[]"),
    "weights-index-empty": _sharded("{}"),
    "weights-shard-gone": _sharded('{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
    "weights-shard-outside": _sharded('{"metadata": {}, "weight_map": {"a": "../../../etc/passwd"}}'),
    "weights-nan": _poison(float("nan")),
    "weights-infinite": _poison(float("inf")),
    "weights-renamed": of_weights(_rename),
    "weights-without-words": _drop("word_embeddings"),
    "weights-without-a-layer": _drop("layer.2."),
    "weights-without-a-norm": _drop("layer.3.output.LayerNorm"),
    "weights-of-another-shape": of_weights(_reshape),
    "weights-none": of_weights(lambda tensors: tensors.clear()),
    "tokenizer-cut": lambda d: cut(d / "tokenizer.json"),
    "tokenizer-empty": text("tokenizer.json", ""),
    "tokenizer-nothing-in-it": text("tokenizer.json", "{}"),
    "tokenizer-list": text("tokenizer.json", "[]"),
    "tokenizer-deep": text("tokenizer.json", DEEP),
    "tokenizer-binary": lambda d: (d / "tokenizer.json").write_bytes(bytes(range(256))),
    "tokenizer-gone": without("tokenizer.json", "tokenizer_config.json"),
    "tokenizer-larger": _larger_tokenizer,
    "tokenizer-class-unknown": lambda d: (
        edited(d / "tokenizer_config.json", tokenizer_class="NoSuchTokenizer"),
        (d / "tokenizer.json").unlink(),
    ),
    "tokenizer-config-cut": lambda d: cut(d / "tokenizer_config.json"),
    "tokenizer-config-list": text("tokenizer_config.json", "[]"),
    "tokenizer-config-deep": text("tokenizer_config.json", DEEP),
    "tokenizer-length-text": tokenizer_config(model_max_length="long"),
    "tokenizer-length-zero": tokenizer_config(model_max_length=0),
    "tokenizer-length-negative": tokenizer_config(model_max_length=-1),
    "tokenizer-directory": _as_directory("tokenizer.json"),
}
# The same of `llama`, which writes text.
WRITERS = {
    "template-syntax": text("chat_template.jinja", "{% for m in messages %}{{ m.content }"),
    "template-unknown-name": text("chat_template.jinja", "{{ nothing.at.all }}"),
    "template-raises": text("chat_template.jinja", "{{ raise_exception('no system prompts here') }}"),
    "template-division": text("chat_template.jinja", "{{ 1 / 0 }}"),
    "template-unsafe": text("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "template-without-end": text("chat_template.jinja", "{% for a in range(10**9) %}x{% endfor %}"),
    "template-silent": text("chat_template.jinja", "hello"),
    "template-only-users": text(
        "chat_template.jinja", "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    ),
    "template-include": text("chat_template.jinja", "{% include 'config.json' %}"),
    "template-latin": lambda d: (d / "chat_template.jinja").write_bytes("é{{ messages }}".encode("latin-1")),
    "llama-heads-indivisible": config(num_attention_heads=5, head_dim=8),
    "llama-rope-unknown": config(
        rope_scaling={"rope_type": "no-such-rope", "factor": 2}, rope_parameters={"rope_type": "no-such-rope"}
    ),
    "llama-weights-cut": lambda d: cut(d / "model.safetensors"),
    "llama-tokenizer-larger": _larger_tokenizer,
}


def _data(place):
    """Good rows at the top, bad ones under data/."""
    jsonl(place / "rows.jsonl", labelled())
    jsonl(place / "chat.jsonl", prompted())
    jsonl(place / "sums.jsonl", [{"question": text, "answer": "#### 1"} for text in sentences()])
    jsonl(place / "plain.jsonl", [{"text": t} for t in sentences()])
    jsonl(place / "numbers.jsonl", [{"text": t, "label": i / 7} for i, t in enumerate(sentences())])
    data = place / "data"
    data.mkdir()
    rows = labelled()
    for name, content in {
        "empty.jsonl": "",
        "blank.jsonl": "\n\n\n",
        "cut.jsonl": '{"text": "w1", "label": 1}\n{"text": "w2", ',
        "lists.jsonl": "[1, 2]\n" * 9,
        "numbers.jsonl": "1\n" * 9,
        "deep.jsonl": DEEP + "\n",
        "digits.jsonl": '{"text": "w1", "label": ' + "9" * 5000 + "}\n",
        "nan.json": "NaN",
        "empty.json": "",
        "number.json": "7",
        "text.json": '"text"',
        "none.json": "[]",
        "object.json": '{"a": 1}',
        "two-lists.json": '{"a": [{"text": "w1"}], "b": [{"text": "w1"}]}',
        "mixed.json": '[{"text": "w1"}, 3]',
        "cut.json": '[{"text": "w1"}',
        "deep.json": DEEP,
        "empty.csv": "",
        "header.csv": "text,label\n",
        "ragged.csv": "text,label\nw1,0\nw2\n",
        "long.csv": "text,label\nw1,0,5\n",
        "quote.csv": 'text,label\n"w1,0\n' + "w2,1\n" * 9,
        "empty.parquet": "",
        "text.parquet": "this is no parquet file",
        "notes.txt": "w1 w2\n" * 9,
        "table.xlsx": "PK",
        "pickle.pkl": "cos\nsystem\n",
    }.items():
        (data / name).write_text(content)
    (data / "latin.jsonl").write_bytes('{"text": "né", "label": 1}\n'.encode("latin-1") * 9)
    (data / "utf16.csv").write_bytes("text,label\nw1,0\n".encode("utf-16"))
    (data / "columns.jsonl").write_text('{"a": 1, "b": 2}\n' * 9)
    (data / "noise.parquet").write_bytes(b"PAR1" + np.random.default_rng(1).bytes(400) + b"PAR1")
    table = {
        "few.jsonl": rows[:3],
        "one-class.jsonl": [row | {"label": 1} for row in rows],
        "null-text.jsonl": [*rows, {"text": None, "label": 0}],
        "null-label.jsonl": [*rows, {"text": "w1", "label": None}],
        "missing-text.jsonl": [*rows, {"label": 0}],
        "empty-text.jsonl": [*rows, {"text": "", "label": 0}],
        "list-label.jsonl": [row | {"label": [row["label"]]} for row in rows],
        "dict-label.jsonl": [row | {"label": {"a": row["label"]}} for row in rows],
        "dict-text.jsonl": [row | {"text": {"a": row["text"]}} for row in rows],
        "list-text.jsonl": [row | {"text": row["text"].split()} for row in rows],
        "number-text.jsonl": [row | {"text": 5} for row in rows],
        "surrogate.jsonl": [row | {"text": "\ud800 w1"} for row in rows],
        "many-labels.jsonl": [{"text": t, "label": i} for i, t in enumerate(sentences(60))],
        "infinite-label.jsonl": [row | {"label": float("inf")} for row in labelled()],
        "huge-label.jsonl": [row | {"label": 10**400 + i} for i, row in enumerate(rows)],
        "no-answer.jsonl": [{"messages": [{"role": "user", "content": "w1"}]}] * 9,
        "messages-text.jsonl": [{"messages": "w1 w2"}] * 9,
        "messages-number.jsonl": [{"messages": 4}] * 9,
        "messages-empty.jsonl": [{"messages": []}] * 9,
        "messages-null.jsonl": [{"messages": [None]}] * 9,
        "messages-roleless.jsonl": [{"messages": [{"content": "w1"}, {"content": "w2"}]}] * 9,
        "messages-role-number.jsonl": [{"messages": [{"role": 1, "content": "w1"}, {"role": 2, "content": "w2"}]}] * 9,
        "messages-content-number.jsonl": [
            {"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": 2}]}
        ]
        * 9,
        "messages-blank.jsonl": [
            {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": " "}]}
        ]
        * 9,
        "empty-response.jsonl": [*prompted(), {"prompt": "w1", "response": ""}],
        "null-response.jsonl": [*prompted(), {"prompt": "w1", "response": None}],
        "two-readings.jsonl": [{"prompt": "w1", "response": "w2", "messages": [], "text": "w1", "label": 1}] * 9,
        "choices.jsonl": [{"question": "w1", "choices": ["w1", "w2"], "answer": "w9"}] * 9,
        "choices-index.jsonl": [{"question": "w1", "choices": ["w1", "w2"], "answer": 7}] * 9,
        "choices-text.jsonl": [{"question": "w1", "choices": "w1 w2", "answer": "w1"}] * 9,
        "choices-none.jsonl": [{"question": "w1", "choices": [], "answer": 0}] * 9,
        "new-label.jsonl": [row | {"label": 5 + row["label"]} for row in rows],
        "no-label.jsonl": [{"text": row["text"]} for row in rows],
        "image-gone.jsonl": [{"image": f"nowhere{i}.png", "label": i % 2} for i in range(9)],
        "image-number.jsonl": [{"image": i, "label": i % 2} for i in range(9)],
        "image-null.jsonl": [{"image": None, "label": i % 2} for i in range(9)],
        "image-text.jsonl": [{"image": "../data/notes.txt", "label": i % 2} for i in range(9)],
        "image-cut.jsonl": [{"image": "cut.png", "label": i % 2} for i in range(9)],
        "image-bomb.jsonl": [{"image": "bomb.png", "label": i % 2} for i in range(9)],
        "image-bytes.jsonl": [{"image": {"bytes": "abc"}, "label": i % 2} for i in range(9)],
    }
    for name, values in table.items():
        jsonl(data / name, values)
    Image.new("RGB", (32, 32)).save(data / "cut.png")
    cut(data / "cut.png", 0.7)
    _bomb(data / "bomb.png")
    (data / "folder").mkdir()
    (data / "folder" / "readme.txt").write_text("nothing")
    (data / "saved").mkdir()
    (data / "saved" / "state.json").write_text("{}")
    (data / "saved" / "dataset_info.json").write_text("{")
    for name in ("pipe.jsonl", "pipe.json", "pipe.csv", "pipe.parquet", "pipe.yaml", "pipe.jinja", "pipe.png"):
        os.mkfifo(data / name)
    jsonl(data / "image-pipe.jsonl", [{"image": "pipe.png", "label": i % 2} for i in range(9)])
    (data / "gone.jsonl").symlink_to("nowhere.jsonl")


def _bomb(path):
    """A picture whose header promises 10^10 pixels."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def _copies(place, original, damages):
    for name, damage in damages.items():
        directory = place / "models" / name
        shutil.copytree(place / original, directory)
        damage(directory)


# What is done to a copy of a good selection file: new values of its entries, or its whole text.
SELECTIONS = {
    "empty": "",
    "list": "[]",
    "null": "null",
    "deep": DEEP,
    "object": "{}",
    "cut": "{",
    "latin": b'{"a": "\xe9"}',
    "version-future": {"schema_version": 99},
    "version-text": {"schema_version": "two"},
    "version-gone": {"schema_version": REMOVED},
    "version-list": {"schema_version": [2]},
    "layers-none": {"selected_layers": [], "mask": "0000"},
    "layers-beyond": {"selected_layers": [9]},
    "layers-negative": {"selected_layers": [-1]},
    "layers-twice": {"selected_layers": [1, 1]},
    "layers-descending": {"selected_layers": [2, 1]},
    "layers-text": {"selected_layers": "12"},
    "layers-fraction": {"selected_layers": [1.5]},
    "layers-true": {"selected_layers": [True]},
    "layers-null": {"selected_layers": None},
    "layers-gone": {"selected_layers": REMOVED},
    "mask-other": {"mask": "1111"},
    "mask-number": {"mask": 1},
    "mask-gone": {"mask": REMOVED},
    "number-billion": {"num_layers": 10**9},
    "number-zero": {"num_layers": 0},
    "number-negative": {"num_layers": -4},
    "number-text": {"num_layers": "four"},
    "number-of-another-model": {"num_layers": 12, "selected_layers": [2, 3], "mask": "001100000000"},
    "pattern-number": {"block_pattern": 5},
    "pattern-empty": {"block_pattern": ""},
    "pattern-braces": {"block_pattern": "{}{}{0[a]}"},
    "tower-unknown": {"tower": "cellar"},
    "tower-list": {"tower": ["encoder"]},
    "importance-text": {"importance": "high"},
    "importance-short": {"importance": [0.5]},
    "ranking-beyond": {"ranking": [9, 8]},
    "undefined-list": {"undefined": [1]},
    "compat-unknown": {"compat": "other"},
    "key-unknown": {"selected_layer": [1]},
    "data-text": {"data": "rows.jsonl"},
    "seed-text": {"seed": "zero"},
    "samples-text": {"num_samples": "many"},
    "interval-short": {"interval": [[0.0, 1.0]]},
    "interval-text": {"interval": ["wide"]},
    "membership-short": {"membership": [0.5]},
}


def _selections(place, good):
    (place / "selections").mkdir()
    for name, change in SELECTIONS.items():
        path = place / "selections" / f"{name}.json"
        if isinstance(change, str | bytes):
            path.write_bytes(change if isinstance(change, bytes) else change.encode())
            continue
        shutil.copy(good, path)
        edited(path, **change)
    for name, change in OTHER_SELECTIONS.items():
        shutil.copy(good, place / f"{name}.json")
        edited(place / f"{name}.json", **change)


# Good ones of another shape: by modules with ranks, and with the lowest layer.
OTHER_SELECTIONS = {
    "modules": {"modules": {"1": {"attention.self.query": 4}, "3": {"attention.self.query": 4}}},
    "lowest": {"selected_layers": [0, 1], "mask": "1100"},
}


def _record(**changes):
    return lambda run: edited(run / "layersift.json", **changes)


def _adapter(**changes):
    return lambda run: edited(run / "adapter_config.json", **changes)


def _first_nan(tensors):
    next(iter(tensors.values()))[:] = float("nan")


def _lose_one(tensors):
    del tensors[next(iter(tensors))]


# What is done to a copy of a good run directory.
RUNS = {
    "record-gone": without("layersift.json"),
    "record-empty": text("layersift.json", ""),
    "record-list": text("layersift.json", "[]"),
    "record-object": text("layersift.json", "{}"),
    "record-cut": lambda d: cut(d / "layersift.json"),
    "record-deep": text("layersift.json", DEEP),
    "record-directory": _as_directory("layersift.json"),
    "record-future": _record(schema_version=99),
    "record-seed-text": _record(seed="zero"),
    "record-seed-negative": _record(seed=-1),
    "record-source-gone": _record(source=REMOVED),
    "record-source-text": _record(source="bert"),
    "record-source-elsewhere": _record(source={"name": "./nowhere"}),
    "record-source-unknown-key": _record(source={"name": "bert", "nmae": 1}),
    "record-columns-list": _record(columns=["text"]),
    "record-columns-other": _record(columns={"text": "sentence", "label": "label"}),
    "record-encoder-list": _record(encoder=[]),
    "record-kind-unknown": _record(encoder={"kind": "poetry"}),
    "record-classes-none": _record(encoder={"kind": "classification", "classes": []}),
    "record-classes-more": _record(encoder={"kind": "classification", "classes": ["0", "1", "2"]}),
    "record-length-zero": _record(encoder={"kind": "classification", "classes": ["0", "1"], "max_length": 0}),
    "record-method-number": _record(settings={"method": 5}),
    "record-settings-text": _record(settings="default"),
    "record-revision-other": _record(model_revision="weights:00000000000000000000"),
    "record-revision-number": _record(model_revision=5),
    "record-digest-other": _record(trained_digest="0" * 64),
    "record-steps-text": _record(steps="ten"),
    "adapter-gone": without("adapter_model.safetensors"),
    "adapter-cut": lambda d: cut(d / "adapter_model.safetensors"),
    "adapter-empty": text("adapter_model.safetensors", ""),
    "adapter-text": text("adapter_model.safetensors", "weights"),
    "adapter-directory": _as_directory("adapter_model.safetensors"),
    "adapter-nan": of_weights(_first_nan, ADAPTER),
    "adapter-one-lost": of_weights(_lose_one, ADAPTER),
    "adapter-renamed": of_weights(_rename, ADAPTER),
    "adapter-none": of_weights(lambda tensors: tensors.clear(), ADAPTER),
    "config-gone": without("adapter_config.json"),
    "config-empty": text("adapter_config.json", ""),
    "config-list": text("adapter_config.json", "[]"),
    "config-cut": lambda d: cut(d / "adapter_config.json"),
    "config-type-unknown": _adapter(peft_type="NOPE"),
    "config-type-gone": _adapter(peft_type=REMOVED),
    "config-rank-text": _adapter(r="eight"),
    "config-rank-other": _adapter(r=4),
    "config-targets-broken": _adapter(target_modules="["),
    "config-targets-nothing": _adapter(target_modules="nothing"),
}


def make(place: Path) -> None:
    """Fill an empty directory."""
    from layersift.api import train
    from layersift.config.recipe import ModelSource
    from layersift.config.train import TrainSettings
    from layersift.models.load import load_model
    from layersift.models.stacks import find_stack
    from layersift.records.reading import DataRecord
    from layersift.records.selection import make_selection

    for name, kind, chat in (("bert", "encoder", False), ("llama", "decoder", True), ("t5", "decoder", False)):
        model = tiny(name)
        model.config.architectures = [type(model).__name__]
        model.save_pretrained(place / name)
        tokenizer(kind, chat=chat).save_pretrained(place / name)
    _data(place)
    _copies(place, "bert", MODELS)
    _copies(place, "llama", WRITERS)
    here = Path.cwd()
    os.chdir(place)  # records name what they were given
    try:
        loaded = load_model(ModelSource("bert"), "classification", 2)
        chosen = make_selection("bert", loaded.revision, find_stack(loaded.model), (1, 3), DataRecord(), "by hand")
        chosen.save("selection.json")
        train("bert", "rows.jsonl", chosen, "run", TrainSettings(max_samples=16, epochs=1))
    finally:
        os.chdir(here)
    _selections(place, place / "selection.json")
    (place / "runs").mkdir()
    for name, damage in RUNS.items():
        shutil.copytree(place / "run", place / "runs" / name)
        damage(place / "runs" / name)
    shutil.copytree(place / "run", place / "sums-run")  # by its record, of a task whose answers are written
    edited(place / "sums-run" / "layersift.json", encoder={"kind": "instruction"})
    _recipes(place)
    _others(place)
    wrong.make(place)


GOOD_RECIPE = {"model": "bert", "data": {"data": "rows.jsonl"}, "output": "out", "variants": ["selected", "all"]}


def _recipes(place):
    (place / "recipe.yaml").write_text(json.dumps(GOOD_RECIPE))  # JSON is YAML
    recipes = place / "recipes"
    recipes.mkdir()
    for name, content in {
        "empty": "",
        "list": "- a\n",
        "text": "hello",
        "number": "3",
        "tabs": "model:\tbert\n\tdata: x",
        "colon": "model: a: b",
        "deep": "{a: " * 5000,
        "anchors": "a: &a [1, 1, 1, 1]\nb: &b [*a, *a, *a, *a]\nc: *nothing\n",
        "tag": "model: !!python/object/apply:os.system ['touch owned']\n",
        "twice": "model: bert\nmodel: llama\noutput: out\ndata: rows.jsonl\n",
        "control": "model: \x07\n",
        "date": "model: 2020-13-45\n",
    }.items():
        (recipes / f"{name}.yaml").write_text(content)
    (place / "lora.yaml").write_text("lora_r: 8\nlora_target_modules: [query]\n")
    (recipes / "latin.yaml").write_bytes("model: né".encode("latin-1"))
    (recipes / "binary.yaml").write_bytes(bytes(range(256)))
    (recipes / "folder.yaml").mkdir()


def _others(place):
    (place / "exists.json").write_text("{}")
    (place / "exists.png").write_text("")
    (place / "exists").mkdir()
    (place / "exists" / "file").write_text("")
    (place / "file").write_text("")
    (place / "flags.yaml").write_text("data: rows.jsonl\n")
    (place / "flags-unknown.yaml").write_text("dta: rows.jsonl\n")
    (place / "flags-list.yaml").write_text("- data\n")
    (place / "flags-type.yaml").write_text("max_samples: many\n")
    (place / "flags-nested.yaml").write_text("max_samples: {a: 1}\n")
    (place / "flags-tokens.yaml").write_text("max-new-tokens: 8\n")
    (place / "flags-trust.yaml").write_text("trust_remote_code: true\n")
    rules = {
        "syntax.py": "def mine(context:\n",
        "raises.py": "def mine(context):\n    raise KeyError('nothing')\n",
        "exits.py": "import sys\nsys.exit(0)\n",
        "imports.py": "from no_such_package import mine\n",
        "short.py": "def mine(context):\n    return [1.0]\n",
        "words.py": "def mine(context):\n    return ['a'] * 4\n",
        "nothing.py": "def mine(context):\n    return None\n",
        "nan.py": "def mine(context):\n    return [float('nan')] * 4\n",
        "infinite.py": "def mine(context):\n    return [float('inf')] * 4\n",
        "undefined.py": "def mine(context):\n    return [None] * 4\n",
        "value.py": "mine = 5\n",
        "arguments.py": "def mine():\n    return [1.0] * 4\n",
        "other.py": "def theirs(context):\n    return [1.0] * 4\n",
    }
    (place / "rules").mkdir()
    for name, content in rules.items():
        (place / "rules" / name).write_text(content)
    (place / "template.jinja").write_text("{% if %}")
    (place / "template-latin.jinja").write_bytes("é".encode("latin-1"))
    (place / "noise.gguf").write_bytes(np.random.default_rng(3).bytes(500))
    (place / "empty.gguf").write_bytes(b"")
    (place / "header.gguf").write_bytes(b"GGUF\x03\0\0\0" + (2**60).to_bytes(8, "little") * 2)
    tasks = place / "tasks"
    tasks.mkdir()
    (tasks / "broken.yaml").write_text("task: [")
    (tasks / "loop.yaml").write_text("task: mine\ndataset_path: json\ninclude: loop.yaml\n")
    (tasks / "function.yaml").write_text("task: mine\ndataset_path: json\ndoc_to_text: !function nothing.here\n")


def contents(directory):
    """Everything below a directory, so that a change of any of it is seen."""
    found, left = {}, [str(directory)]
    while left:
        for entry in os.scandir(left.pop()):
            if entry.is_dir(follow_symlinks=False):
                left.append(entry.path)
            else:
                status = entry.stat(follow_symlinks=False)
                found[entry.path] = (status.st_size, status.st_mtime_ns)
    return found
