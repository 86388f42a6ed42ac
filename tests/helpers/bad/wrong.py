"""Inputs that were once taken for good ones and gave a wrong result, and outputs in every state of the place."""

import gzip
import json
import os
import shutil
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet

from bad.row import Bad, rows_of

LONG = "w1 w2 w3 w4 w5 w6"
# Of data whose columns are called as nobody knows; each row is made of its index, and the message names a column.
LAYOUTS = {
    "sentiment": lambda i: {"review": f"{LONG} w{i}", "sentiment": ["good", "bad"][i % 2]},
    "coarse": lambda i: {"text": f"{LONG} w{i}", "coarse": i % 6, "fine": i % 10},
    "v1": lambda i: {"text": f"{LONG} w{i}", "v1": ["ham", "spam"][i % 2]},
    "is_toxic": lambda i: {"text": f"{LONG} w{i}", "is_toxic": i % 3 == 0},
    "rating": lambda i: {"title": f"w{i}", "text": f"{LONG} w{i}", "rating": float(i % 5)},
    "human_score": lambda i: {"sentence": f"{LONG} w{i}", "human_score": i / 7},
    "correct": lambda i: {"question": f"{LONG} w{i}", "rationale": LONG, "correct": "ABCDE"[i % 5]},
    "premise": lambda i: {"premise": f"{LONG} w{i}", "question": ["cause", "effect"][i % 2], "label": i % 2},
    "paragraphs": lambda i: {"title": f"w{i}", "paragraphs": [{"context": LONG}]},
    "short_summary": lambda i: {"text": f"{LONG} w{i}", "short_summary": f"w{i} w2 w3"},
    "polarity": lambda i: {"content": f"{LONG} w{i}", "polarity": ["-", "0", "+"][i % 3]},
    "label_id": lambda i: {"review": f"{LONG} w{i}", "label_id": i % 3},
    "answer_idx": lambda i: {"question": f"{LONG} w{i}", "options": {"A": "w1", "B": "w2"}, "answer_idx": "AB"[i % 2]},
    "opb": lambda i: {"question": f"{LONG} w{i}", "opa": "w1", "opb": "w2", "answer": f"w{i % 2 + 1}"},
    "option2": lambda i: {"sentence": f"{LONG} w{i}", "option1": "w1", "option2": f"w{i}", "label": i % 2},
    "endings": lambda i: {"text": f"{LONG} w{i}", "endings": ["w1", "w2"], "label": i % 2},
    "split": lambda i: {"text": f"{LONG} w{i}", "label": i % 2, "split": ["train", "test"][i % 3 > 1]},
    "star_rating": lambda i: {"review": f"{LONG} w{i}", "star_rating": i % 5 + 1},
}
# Of a turn of the assistant, each beside its text; the message names the first key.
MARKS = {
    "loss-half": {"loss": 0.5},
    "loss-text": {"loss": "no"},
    "train-list": {"train": [0]},
    "trainable-two": {"trainable": 2},
    "loss_mask-list": {"loss_mask": [0, 1]},
    "loss_scale-negative": {"loss_scale": -1},
    "weight-text": {"weight": "0"},
    "weight-nested": {"weight": {"a": 1}},
    "train_detail": {"train_detail": [{"begin": 0}]},
    "masked": {"masked": True},
    "mask": {"mask": 1},
    "learnable": {"learnable": False},
    "graded": {"graded": 0},
    "use": {"use": False},
    "training-and-loss": {"training": True, "loss": False},
}
ROLES = ("system", "developer", "tool", "ipython", "context", "critic")
TWO = "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% elif m.role == 'assistant' %}"
TWO += "<assistant>{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
EVERY = "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c }}{% endfor %}"
EVERY += "<|end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
HALF_WRITTEN = [
    {"role": "user", "content": "w1"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": name, "arguments": {"a": "w7"}}} for name in ("w8", "w9")
        ],
    },
    {"role": "tool", "content": "w4"},
    {"role": "assistant", "content": "w2"},
]
CSV = {
    "unclosed": 'text,label\nw1,0\n"w2 says, 1\nw3,0\n' + "w4,1\n" * 9,
    "within": 'text,label\n"w1" w2,0\n' + "w4,1\n" * 9,
    "apart": 'text,label\nw1,0\n"w2,1\n"w3,0\n' + "w4,1\n" * 9,
    "at-the-end": "text,label\n" + "w4,1\n" * 9 + '"w5,0',
    "header-twice": "text,text,label\n" + "w1,w2,0\n" * 9,
    "header-again": "text,label\n" + ("w4,1\n" * 9 + "text,label\n") * 2,
    "blank-quote": 'text, label\nw1, "0"\n' + 'w4, "1"\n' * 9,
    "header-quote": '"text,label\nw1,0\n' + "w4,1\n" * 9,
}
SPELLED_TWICE = {  # the second row's label, where the first one's is caf\u00e9 or 0
    "composed": "cafe\u0301",
    "no-width": "caf\u00e9\u200b",
    "no-break": "caf\u00e9\u00a0",
    "wide": "\uff43af\u00e9",
    "unlabelled": -100,
    "unlabelled-text": "-100",
}
# Beside the text of a turn, and of a turn's parts; the message names the key.
BESIDE = ("text", "parts", "image", "images", "audio", "video", "files", "attachments", "refusal", "value")
PARTS = ("thinking", "file", "input_audio", "video", "tool_result")
FIELDS = {"tab": "\t", "semicolon": ";", "bar": "|"}  # between those of a .csv file
FOREIGN = {  # files of other kinds than their names say; the message says what they are
    "pointer.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git LFS"),
    "pointer.csv": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git LFS"),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git LFS"),
    "sheet.csv": (b"PK\x03\x04" + bytes(99), "Excel"),
    "packed.jsonl": (gzip.compress(b'{"text": "w1", "label": 0}\n'), ".jsonl.gz"),
    "arrow.parquet": (b"ARROW1\0\0" + bytes(99), "Arrow"),
    "parquet.csv": (b"PAR1" + bytes(99), ".parquet"),
    "page.csv": (b"<html><body>not found</body></html>\n", "web page"),
    "page.jsonl": (b"<!DOCTYPE html>\n<html></html>\n", "web page"),
    "rows.csv": (b'{"text": "w1", "label": 0}\n' * 9, ".jsonl"),
}
# Of cloned Hub datasets, what their README.md says of the data files; the message names README.md and what is wrong.
CARDS = {
    "above": ("[../rows.jsonl]", "../rows.jsonl"),
    "absolute": ("[/etc/passwd]", "/etc/passwd"),
    "address": ("[hf://datasets/a/b.jsonl]", "hf://"),
    "missing": ("[nothing-*.jsonl]", "nothing-*"),
    "split": ("[{split: dev, path: a.jsonl}]", "dev"),
}
LABELS = {
    "nines": "9" * 309,
    "many-nines": "9" * 4000,
    "surrogate": "a\ud800",
    "infinite": "1e400",
}
EVALUATIONS = {  # of one that `evaluate` wrote; the message names file and key
    "metrics": {"metrics": [1]},
    "metrics-text": {"metrics": {"accuracy": "high"}},
    "metrics-infinite": {"metrics": {"accuracy": 1e999}},
    "samples": {"samples": "many"},
    "samples-null": {"samples": None},
    "data": {"data": "rows.jsonl"},
    "run": {"run": 5},
    "others": {"trained_digest": "0"},
}
INTO = {  # of trainers' configs by what is wrong in them; the message names file and key
    "lora_r: many": "lora_r",
    "lora_r: 0": "lora_r",
    "lora_r: -4": "lora_r",
    "lora_r: 1.5": "lora_r",
    "lora_r: [8]": "lora_r",
    "lora_alpha: none": "lora_alpha",
    "lora_alpha: 0": "lora_alpha",
    "lora_alpha: .nan": "lora_alpha",
    "lora_dropout: 2": "lora_dropout",
    "lora_dropout: {a: 1}": "lora_dropout",
    "lora_target_modules: 5": "lora_target_modules",
    "lora_target_modules: [nothing]": "lora_target_modules",
    "lora_target_modules: '['": "lora_target_modules",
    "lora_target_modules: [[query]]": "lora_target_modules",
    "lora_target_modules: ''": "lora_target_modules",
}
STATES = (
    "wrong/file.csv",
    "wrong/directory.csv",
    "wrong/empty.csv",
    "wrong/dangling.csv",
    "wrong/link.csv",
    "wrong/pipe.csv",
)
WRITING = {
    "select bert --data rows.jsonl -o {}": "select",
    "select bert --data rows.jsonl --picture {}": "select",
    "advise bert --data rows.jsonl -o {}": "advise",
    "train bert --data rows.jsonl -o {}": "train",
    "evaluate run --data rows.jsonl -o {}": "evaluate",
    "predict run --data rows.jsonl -o {}": "predict",
    "export selection.json --to trl -o {}": "export",
    "push run me/x --base-model org/bert --dry-run -o {}": "push",
    "prune run --params 100 -o {}": "prune",
}


def make(place):
    """Fill `wrong/` of a place that has a run and a selection."""
    wrong = place / "wrong"
    wrong.mkdir()

    def write(name, rows):
        (wrong / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    for name, layout in LAYOUTS.items():
        write(f"{name}.jsonl", [layout(i) for i in range(24)])
    for name, beside in MARKS.items():
        turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2", **beside}]
        later = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]
        write(f"turn-{name}.jsonl", [{"messages": turns + later}] * 9)
    for role in ROLES:
        turns = [{"role": role, "content": "w9 w8"}, {"role": "user", "content": "w1"}]
        write(f"role-{role}.jsonl", [{"messages": [*turns, {"role": "assistant", "content": "w2"}]}] * 9)
    (wrong / "two.jinja").write_text(TWO)
    for name, content in CSV.items():
        (wrong / f"{name}.csv").write_text(content)
    for name, label in LABELS.items():
        write(f"label-{name}.jsonl", [{"text": f"w{i}", "label": label if i % 2 else "0"} for i in range(12)])
    _make_data(wrong, write)
    write("unknown.jsonl", [{"text": "привет мир", "label": i % 2} for i in range(12)])
    with gzip.open(wrong / "bomb.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(140):
            file.write(b'{"text": "' + b"w" * (1 << 20) + b'", "label": 1}\n')
    shutil.copytree(place / "llama", wrong / "no-stop")
    (wrong / "no-stop" / "generation_config.json").write_text('{"eos_token_id": "x"}')
    record = json.loads((place / "run" / "layersift.json").read_text())
    good = {"run": "run", "metrics": {"accuracy": 0.5}, "samples": 8, "data": {"source": "rows.jsonl"}}
    for name, change in EVALUATIONS.items():
        values = {**good, "trained_digest": record["trained_digest"], **change}
        (wrong / f"evaluation-{name}.json").write_text(json.dumps(values))
    for mask in ("1111", "1000"):
        shutil.copytree(place / "run", wrong / f"run-{mask}")
        (wrong / f"run-{mask}" / "layersift.json").write_text(json.dumps(record | {"mask": mask}))
    for number, line in enumerate(INTO):
        (wrong / f"into-{number}.yaml").write_text(f"adapter: lora\n{line}\n")
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    (wrong / "aliases.yaml").write_text(f"a0: &a0 [x]\n{levels}\n")
    (wrong / "itself.yaml").write_text("model: &a [*a]\n")
    for key in ("data", "output", "selection", "method"):
        (wrong / f"nul-{key}.yaml").write_text(f'{key}: "a\\0b"\n')
        (wrong / f"empty-{key}.yaml").write_text(f"{key}: ''\n")
    (wrong / "file.csv").write_text("mine")
    (wrong / "empty.csv").mkdir()
    (wrong / "directory.csv").mkdir()
    (wrong / "directory.csv" / "file").write_text("mine")
    (wrong / "dangling.csv").symlink_to("nowhere")
    (wrong / "link.csv").symlink_to("file.csv")
    os.mkfifo(wrong / "pipe.csv")
    (wrong / "theirs.partial").mkdir()
    (wrong / "theirs.partial" / "file").write_text("mine")


def _make_data(wrong, write):
    for name, (content, _) in FOREIGN.items():
        (wrong / name).write_bytes(content)
    write("no-text.jsonl", [{"words": f"{LONG} w{i}"} for i in range(12)])
    write("seven.jsonl", [{"text": f"{LONG} w{i}"} for i in range(7)])
    write("words.jsonl", [{"text": f"w{i}", "label": ["good", "bad"][i % 2]} for i in range(12)])
    write("labels.jsonl", [{"text": f"w{i}", "labels": i % 2} for i in range(12)])
    for name, choices in {"same": ["w1", "w1"], "null": ["w1", None], "blank": ["w1", " "]}.items():
        write(f"choices-{name}.jsonl", [{"question": f"w{i}", "choices": choices, "answer": "w1"} for i in range(12)])
    write("calls.jsonl", [{"messages": HALF_WRITTEN}] * 9)
    (wrong / "no-arguments.jinja").write_text(EVERY.replace("{{ c }}", "{{ c.function.name }}"))
    (wrong / "one-call.jinja").write_text(EVERY.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"))
    (wrong / "blank.jinja").write_text(" \n")
    table = pyarrow.Table.from_arrays([["w1"] * 9, ["w2"] * 9, [0, 1, 0] * 3], names=["text", "text", "label"])
    pyarrow.parquet.write_table(table, wrong / "twice.parquet")
    _save_bomb(wrong / "bomb-saved")
    for name, label in SPELLED_TWICE.items():
        first = type(label)(0) if name.startswith("unlabelled") else "caf\u00e9"
        write(f"twice-{name}.jsonl", [{"text": f"w{i}", "label": label if i % 2 else first} for i in range(12)])
    for name in BESIDE:
        turns = [{"role": "user", "content": "w1", name: "w9"}, {"role": "assistant", "content": "w2"}]
        write(f"beside-{name}.jsonl", [{"messages": turns}] * 9)
    for kind in PARTS:
        turns = [{"role": "user", "content": [{"type": kind, kind: "w9"}]}, {"role": "assistant", "content": "w2"}]
        write(f"part-{kind}.jsonl", [{"messages": turns}] * 9)
    for name, between in FIELDS.items():
        (wrong / f"{name}.csv").write_text(f"text{between}label\n" + f"w1{between}0\n" * 9)
    (wrong / "nul.csv").write_text("text,label\n" + "w1\0,0\n" * 9)
    (wrong / "utf-16.csv").write_bytes(("text,label\n" + "w1,0\n" * 9).encode("utf-16"))
    (wrong / "latin.csv").write_bytes(("text,label\n" + "caf\u00e9,0\n" * 9).encode("latin-1"))
    (wrong / "key-twice.jsonl").write_text('{"text": "w1", "label": 0, "label": 1}\n' * 9)
    (wrong / "key-twice.json").write_text("[" + ", ".join(['{"text": "w1", "text": "w2"}'] * 9) + "]")
    write("no-class.jsonl", [{"text": f"w{i}", "label": f"{i},5"} for i in range(24)])
    for name, (files, _) in CARDS.items():
        (wrong / f"card-{name}").mkdir()
        write(f"card-{name}/a.jsonl", [{"text": f"w{i}", "label": i % 2} for i in range(12)])
        head = f"configs:\n- config_name: default\n  data_files: {files}\n"
        (wrong / f"card-{name}" / "README.md").write_text(f"---\n{head}---\n")
    (wrong / "card-several").mkdir()
    head = "configs:\n- config_name: en\n  data_files: en.jsonl\n- config_name: de\n  data_files: de.jsonl\n"
    (wrong / "card-several" / "README.md").write_text(f"---\n{head}---\n")
    for name in ("en", "de"):
        write(f"card-several/{name}.jsonl", [{"text": f"w{i}", "label": i % 2} for i in range(12)])


def _save_bomb(directory):
    """A directory as `datasets` saves one, of a file that unpacks to a thousand times its size."""
    schema = pyarrow.schema([("text", pyarrow.string()), ("label", pyarrow.int64())])
    directory.mkdir()
    packing = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.ipc.new_stream(str(directory / "data-00000-of-00001.arrow"), schema, options=packing) as stream:
        batch = pyarrow.record_batch([pyarrow.array(["w" * (1 << 20)] * 10), pyarrow.array([1] * 10)], schema=schema)
        for _ in range(14):
            stream.write_batch(batch)
    (directory / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "a", "_split": None})
    )
    (directory / "dataset_info.json").write_text("{}")


def _of_foreign() -> Iterator[Bad]:
    for name, (_, named) in FOREIGN.items():
        for command in ("select bert", "train bert -o new"):
            yield Bad(f"{command} --data wrong/{name}", (name, named))
    for name in ("no-arguments", "one-call"):
        command = f"select llama --data wrong/calls.jsonl --chat-template wrong/{name}.jinja"
        yield Bad(command, ("calls.jsonl", "row 1", "message 2", "not all of it"))
    for command in ("select wrong/no-stop", "train wrong/no-stop -o new"):
        yield Bad(f"{command} --data chat.jsonl", ("no-stop", "generation_config.json", "eos_token_id", "'x'"))
    for name in ("same", "null", "blank"):
        yield Bad(f"select llama --data wrong/choices-{name}.jsonl", (f"choices-{name}.jsonl, row ", "choices", "w1"))
    for command in ("evaluate run --data", "train bert --data rows.jsonl -o new --eval-data"):
        yield Bad(f"{command} wrong/labels.jsonl", ("labels.jsonl has no column 'label'", "'labels'", "rename"))
    for command in ("select llama", "train llama -o new"):
        yield Bad(f"{command} --data chat.jsonl --chat-template wrong/blank.jinja", ("blank.jinja", "empty"))


def _of_data() -> Iterator[Bad]:
    for name in LAYOUTS:
        yield Bad(f"select bert --data wrong/{name}.jsonl", (f"{name}.jsonl", name))
        yield Bad(f"train llama --data wrong/{name}.jsonl -o new", (f"{name}.jsonl", name))
    for name, beside in MARKS.items():
        yield Bad(f"select llama --data wrong/turn-{name}.jsonl", (f"turn-{name}.jsonl", "row 1", next(iter(beside))))
    for role in ROLES:
        command = f"select llama --data wrong/role-{role}.jsonl --chat-template wrong/two.jinja"
        yield Bad(command, (f"role-{role}.jsonl", "row 1", "message 1"))
    for name in CSV:
        yield Bad(f"select bert --data wrong/{name}.csv", (f"{name}.csv",))
        yield Bad(f"predict run --data wrong/{name}.csv", (f"{name}.csv",))
    for name in LABELS:
        yield Bad(f"select bert --data wrong/label-{name}.jsonl", (f"label-{name}.jsonl", "row 2", "label"))
    for name, label in SPELLED_TWICE.items():
        yield Bad(
            f"select bert --data wrong/twice-{name}.jsonl", (f"twice-{name}.jsonl", "row 2", repr(label).strip("'"))
        )
    for name in BESIDE:
        for command in ("select llama", "inspect llama"):
            yield Bad(f"{command} --data wrong/beside-{name}.jsonl", (f"beside-{name}.jsonl", "row 1", name))
    for kind in PARTS:
        yield Bad(f"select llama --data wrong/part-{kind}.jsonl", (f"part-{kind}.jsonl", "row 1", kind))
    for name in FIELDS:
        for command in ("select bert", "predict run"):
            yield Bad(f"{command} --data wrong/{name}.csv", (f"{name}.csv", "between the fields"))
    for name, (_, named) in CARDS.items():
        for command in ("select bert", "train bert -o new"):
            yield Bad(f"{command} --data wrong/card-{name}", (f"card-{name}/README.md", named))
    yield from rows_of(
        "select bert --data wrong/",
        """
        nul.csv => nul.csv, line 2 & NUL
        utf-16.csv => utf-16.csv & UTF-8
        latin.csv => latin.csv & UTF-8
        key-twice.jsonl => key-twice.jsonl, line 1 & 'label' & twice
        key-twice.json => key-twice.json & 'text' & twice
        twice.parquet => twice.parquet & 'text'
        bomb-saved => data-00000-of-00001.arrow & unpacks
        no-class.jsonl => no-class.jsonl & no two of 24 rows
        card-several => card-several/README.md & en, de & en.jsonl
        """,
    )
    yield Bad("select bert --data wrong/unknown.jsonl", ("unknown.jsonl", "tokenizer"))
    yield Bad("train bert --data wrong/unknown.jsonl -o new", ("unknown.jsonl", "tokenizer"))
    for command in ("select bert", "predict run", "evaluate run"):
        yield Bad(f"{command} --data wrong/bomb.jsonl.gz", ("bomb.jsonl.gz", "unpacks"))


def _of_files() -> Iterator[Bad]:
    for name in EVALUATIONS:
        named = "others than" if name == "others" else name.partition("-")[0]
        command = f"push run me/x --base-model org/bert --dry-run -o new --evaluation wrong/evaluation-{name}.json"
        yield Bad(command, (f"evaluation-{name}.json", named))
    for mask in ("1111", "1000"):
        for command in ("evaluate", "predict"):
            yield Bad(f"{command} wrong/run-{mask} --data rows.jsonl", (f"run-{mask}", mask, "not of one training"))
    for number, key in enumerate(INTO.values()):
        yield Bad(f"export selection.json --to axolotl --into wrong/into-{number}.yaml", (f"into-{number}.yaml", key))
    for name in ("aliases", "itself"):
        for command in ("run", "sweep", "compare", "oracle", "export selection.json --to trl --into"):
            yield Bad(f"{command} wrong/{name}.yaml", (f"{name}.yaml", "aliases"))
        yield Bad(f"select bert --data rows.jsonl --config wrong/{name}.yaml", (f"{name}.yaml",))
    for key in ("data", "output", "selection", "method"):
        yield Bad(f"train bert --data rows.jsonl -o new --config wrong/nul-{key}.yaml", (f"nul-{key}.yaml", key))
        yield Bad(f"train bert --data rows.jsonl -o new --config wrong/empty-{key}.yaml", (f"empty-{key}.yaml", key))


def _of_outputs() -> Iterator[Bad]:
    for command in WRITING:
        for state in STATES:
            yield Bad(command.format(state), (state, "give another --output"))
        flag = "--picture" if "--picture" in command else "-o"
        yield Bad(command.format("''"), (flag, "empty"))
    for other in ("a.png", "./a.png", "wrong/../a.png", "a.png/b.png"):
        yield Bad(f"select bert --data rows.jsonl -o a.png --picture {other}", ("a.png", "outputs of one command"))
    for cache in ("new", "./new", "new/cache"):
        yield Bad(f"train bert --data rows.jsonl -o new --activation-cache {cache} --ratio 0.5", (cache, "apart"))
    for more in ("", " --resume"):
        yield Bad(f"train bert --data rows.jsonl -o wrong/theirs{more}", ("theirs.partial", "none of ours"))


def _of_settings() -> Iterator[Bad]:
    for command in ("select bert", "train bert", "advise bert"):
        yield Bad(f"{command} --data rows.jsonl -o {'n' * 230}", ("more than 200 bytes",))
    yield from rows_of(
        "run recipe.yaml --set ",
        """
        'evaluate.data={}' => evaluate.data is empty
        "evaluate.data=''" => evaluate.data is empty
        "evaluate.data={a: ''}" => evaluate.data is empty
        train.strategy=converging:0.99@0.000000000001 => 0.001
        """,
    )
    yield from rows_of(
        "",
        """
        train bert --data rows.jsonl -o new --strategy converging:0.99@0.000000000001 => 0.001
        train bert --data rows.jsonl -o new --strategy converging:0.9@0.7 => 0.001
        inspect bert --plan --strategy converging:0.99@0.0000001 => 0.001
        train bert --data rows.jsonl -o new --method adalora --max-samples 8 --epochs 1 => adalora & --epochs
        train bert --data rows.jsonl -o new --method full --quantization 4bit => full & quantization
        train bert --data rows.jsonl -o new --merge --quantization 4bit => quantised & --merge
        select bert --data plain.jsonl --modules --budget-params 2k => does not write text
        select bert --data plain.jsonl --criterion fisher => does not write text
        push run 'what ever/x y' --base-model org/bert --dry-run -o new => what ever/x y & user/name
        push run x --base-model org/bert --dry-run -o new => user/name
        push run me/x/y --base-model org/bert --dry-run -o new => me/x/y
        push run ./x --base-model org/bert --dry-run -o new => ./x
        push run me/x --base-model ./bert --dry-run -o new => --base-model & ./bert
        push run me/x --base-model /tmp/bert --dry-run -o new => --base-model & /tmp/bert
        push run me/x --base-model 'org/be rt' --dry-run -o new => --base-model
        evaluate run --data '' => --data is empty
        predict run --data rows.jsonl --keep '' => --keep is empty
        select bert --data rows.jsonl --config '' => --config is empty
        select bert --data wrong/words.jsonl --task regression => words.jsonl, row 1 & 'good' & numbers
        train bert --data wrong/words.jsonl --task regression -o new => words.jsonl, row 1 & 'good' & numbers
        select bert --data rows.jsonl -o ~nobody-of-that-name/new => ~nobody-of-that-name & user
        train bert --data rows.jsonl -o ~nobody-of-that-name/new => ~nobody-of-that-name & user
        """,
    )


WRONG = [*_of_foreign(), *_of_data(), *_of_files(), *_of_outputs(), *_of_settings()]
