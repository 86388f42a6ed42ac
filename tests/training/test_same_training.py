"""What is resumed is the same training: every setting is changed between start and resume, and either it is refused
or the adapters are those of the training that went on with the same."""

import json
import shutil
from dataclasses import fields

import pytest
from safetensors.torch import load_file

from layersift.config.recipe import DataSettings, ModelSource
from layersift.config.train import TrainSettings, WatchSettings
from tiny import tiny
from training import interrupted_at
from words import tokenizer

REFUSED = {  # by setting: what is given to the resumed training instead
    "name": "other",
    "revision": "--revision main",
    "dtype": "--dtype bfloat16",
    "trust_remote_code": "--trust-remote-code",
    "quantization": "--quantization 4bit",
    "data": "--data more.jsonl",
    "text_column": "--text-column second",
    "text_pair_column": "--text-pair-column second",
    "label_column": "--label-column other",
    "prompt_column": "--prompt-column text",
    "response_column": "--response-column second",
    "messages_column": "--messages-column text",
    "image_column": "--image-column text",
    "choices_column": "--choices-column text",
    "split": "--split test",
    "max_length": "--max-length 4",
    "chat_template": "--chat-template template.jinja",
    "source_language": "--source-language en",
    "target_language": "--target-language en",
    "max_samples": "--max-samples 30",
    "epochs": "--epochs 5",
    "learning_rate": "--learning-rate 0.002",
    "batch_size": "--batch-size 8",
    "gradient_accumulation": "--gradient-accumulation 2",
    "method": "--method pissa",
    "method_options": "--method-option use_rslora=true",
    "rank": "--rank 4",
    "ranks": "--rank-of attention=4",
    "alpha": "--alpha 8",
    "dropout": "--dropout 0.1",
    "target_modules": "--target-modules query",
    "scheduler": "--scheduler cosine",
    "warmup_ratio": "--warmup-ratio 0.5",
    "weight_decay": "--weight-decay 0.1",
    "loraplus_ratio": "--loraplus-ratio 4",
    "layer_decay": "--layer-decay 0.9",
    "gradient_checkpointing": "--gradient-checkpointing",
    "precision": "--precision bf16",
    "activation_cache": "--activation-cache off --selection s.json",
    "prefix_dropout": "--prefix-dropout --selection s.json",
    "shared_prompt": "--shared-prompt --selection s.json",
    "strategy": "--strategy freezing:1@0.5",
    "hold_back": "--hold-back 0.25",
    "eval_data": "--eval-data more.jsonl",
    "eval_split": "--eval-data parts --eval-split test",
    "patience": "--eval-data more.jsonl --patience 2",
    "seed": "--seed 1",
    "selection": "--selection s.json",
}
SAME = {  # what the adapters do not depend on
    "device": "--device cpu",
    "task": "--task classification",
    "report_to": "--report-to tensorboard",
    "merge": "--merge",
}
NO_FLAG = {"stream"}
TRAIN = "train {model} --data rows.jsonl --epochs 4 --batch-size 4 -o {output} -q"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("place")
    for name, seed in (("model", 0), ("other", 1)):
        model = tiny("bert", seed=seed)
        model.config.architectures = [type(model).__name__]
        model.save_pretrained(directory / name)
        tokenizer().save_pretrained(directory / name)
    rows = [{"text": f"w{i} w{i % 7} w{i % 5}", "second": f"w{i}", "label": i % 2, "other": i % 3} for i in range(36)]
    for name, count in (("rows", 32), ("more", 36)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    (directory / "parts").mkdir()
    shutil.copy(directory / "more.jsonl", directory / "parts" / "test.jsonl")
    (directory / "template.jinja").write_text("{{ messages[0].content }}")
    return directory


@pytest.fixture
def begun(place, call, monkeypatch):
    """Begin a training in a place, and end it with a checkpoint behind its third step."""

    def begin(name, *more, command=TRAIN):
        with interrupted_at(monkeypatch, 3):
            ended = call(*command.format(model="model", output=name).split(), *more, cwd=place)
        assert ended.returncode == 130, ended.stderr
        return place / f"{name}.partial"

    return begin


def test_every_setting_is_in_a_table():
    of_settings = {f.name for cls in (ModelSource, DataSettings, TrainSettings, WatchSettings) for f in fields(cls)}
    assert of_settings | {"seed", "selection", "merge"} == {*REFUSED, *SAME, *NO_FLAG}


def test_a_resumed_training_has_the_settings_that_it_was_begun_with(place, begun, call):
    assert call(*["select", "model", "--data", "rows.jsonl", "-o", "s.json", "-q"], cwd=place).returncode == 0
    partial = begun("begun")
    for name, flags in REFUSED.items():
        shutil.copytree(partial, place / f"{name}.partial")
        model, rest = ("other", "") if name == "name" else ("model", flags)
        words = TRAIN.format(model=model, output=name).split()
        ended = call(*words, *rest.split(), "--resume", cwd=place)
        assert ended.returncode == 2, (name, ended.stderr or ended.stdout)
        assert ended.stderr.count("error: ") == 1, name
        assert not (place / name).exists(), name
    trained = {}
    for name, flags in {"the same": "", **SAME}.items():
        shutil.copytree(partial, place / f"{name}.partial")
        words = TRAIN.format(model="model", output="{output}").split()
        ended = call(*(w.format(output=name) for w in words), *flags.split(), "--resume", cwd=place)
        assert ended.returncode == 0, (name, ended.stderr)
        trained[name] = load_file(place / name / "adapter_model.safetensors")
    for name, weights in trained.items():
        assert all((weights[key] == value).all() for key, value in trained["the same"].items()), name


@pytest.mark.parametrize("file", ["rows.jsonl", "model/tokenizer.json", "model/model.safetensors", "held.jsonl"])
def test_files_that_changed_since_the_start_are_seen(place, begun, call, file):
    """By content: the paths are the same."""
    shutil.copy(place / "more.jsonl", place / "held.jsonl")
    watched = ["--eval-data", "held.jsonl"]
    name = f"edited-{file.replace('/', '-')}"
    begun(name, *watched)
    path = place / file
    before = path.read_bytes()
    try:
        if file.endswith("tokenizer.json"):
            values = json.loads(before)
            vocabulary = values["model"]["vocab"]
            vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
            path.write_text(json.dumps(values))
        elif file.endswith(".safetensors"):
            shutil.copy(place / "other" / "model.safetensors", path)
        else:
            path.write_bytes(before.replace(b"w3", b"w4"))
        ended = call(*TRAIN.format(model="model", output=name).split(), *watched, "--resume", cwd=place)
    finally:
        path.write_bytes(before)
    assert ended.returncode == 2, ended.stderr
    assert "begun with other" in ended.stderr
    assert "eval-data" in ended.stderr or file != "held.jsonl"


def test_an_edited_chat_template_is_another_training(tmp_path, llama_directory, call, monkeypatch):
    rows = [{"prompt": f"w{i}", "response": f"w{i % 5} w{i % 3}"} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = tmp_path / "t.jinja"
    plain = "{% for m in messages %}{{ m.role }} {{ m.content }} w9 {% endfor %}"
    template.write_text(plain)
    words = ["train", llama_directory, "--data", "rows.jsonl", "--chat-template", "t.jinja", "--batch-size", "4", "-q"]
    with interrupted_at(monkeypatch, 2):
        assert call(*words, "-o", "run", cwd=tmp_path).returncode == 130
    template.write_text(plain.replace("w9", "w8"))
    ended = call(*words, "-o", "run", "--resume", cwd=tmp_path)
    assert ended.returncode == 2
    assert "begun with other examples" in ended.stderr
    template.write_text(plain)
    assert call(*words, "-o", "run", "--resume", cwd=tmp_path).returncode == 0


def test_a_training_that_an_earlier_version_began_goes_on_or_is_told_as_that(place, begun, call):
    """What it did not write and could not be otherwise is as it was; what it did not write and is, is refused."""
    partial = begun("of-before")
    path = partial / "training.json"
    whole = json.loads(path.read_text())
    for unwritten in ("eval-data", "patience", "quantization"):
        del whole[unwritten]
    del whole["settings"]["loraplus_ratio"]
    path.write_text(json.dumps({name: value for name, value in whole.items() if name not in ("dtype", "examples")}))
    words = TRAIN.format(model="model", output="of-before").split()
    ended = call(*words, "--resume", cwd=place)
    assert ended.returncode == 2
    assert "begun with other dtype, examples: an earlier version of layersift began it" in ended.stderr
    assert not (place / "of-before").exists()
    path.write_text(json.dumps(whole))
    assert call(*words, "--resume", cwd=place).returncode == 0
