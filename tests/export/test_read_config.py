"""`layersift advise --from FILE`: what other trainers' configs say, as flags."""

import json

import pytest
import yaml

from layersift.errors import LayersiftError
from layersift.export.read_config import read_trainer_file

AXOLOTL = """\
base_model: org/model
adapter: qlora
load_in_4bit: true
lora_r: 32
lora_alpha: 64
lora_target_modules: [q_proj, v_proj]
datasets:
  - path: json
    data_files: chats.jsonl
    type: chat_template
    field_messages: conversations
sequence_len: 1024
micro_batch_size: 2
gradient_accumulation_steps: 8
num_epochs: 2
learning_rate: 2e-4   # a text to YAML
lr_scheduler: cosine
warmup_ratio: 0.1
gradient_checkpointing: true
bf16: auto
loraplus_lr_ratio: 16
output_dir: out
"""
FACTORY = """\
model_name_or_path: org/model
stage: sft
finetuning_type: lora
lora_target: all
dataset: mine
dataset_dir: sets
template: qwen
cutoff_len: 2048
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
bf16: true
quantization_bit: 4
"""
TRL = """\
model_name_or_path: org/model
dataset_name: user/chats
dataset_train_split: train
use_peft: true
lora_r: 8
lora_target_modules: all-linear
learning_rate: 0.0002
per_device_train_batch_size: 4
max_length: 512
use_rslora: true
"""


@pytest.fixture
def read(tmp_path):
    def of(text):
        (tmp_path / "theirs.yaml").write_text(text)
        return read_trainer_file(tmp_path / "theirs.yaml")

    return of


def test_axolotl(read):
    file = read(AXOLOTL)
    assert file.title == "Axolotl"
    assert file.flags == {
        "model": "org/model",
        "learning_rate": 2e-4,
        "scheduler": "cosine",
        "warmup_ratio": 0.1,
        "epochs": 2,
        "batch_size": 2,
        "gradient_accumulation": 8,
        "max_length": 1024,
        "loraplus_ratio": 16,
        "method": "lora",
        "rank": 32,
        "alpha": 64,
        "dropout": 0,
        "target_modules": "q_proj,v_proj",
        "gradient_checkpointing": True,
        "quantization": "4bit",
        "data": "chats.jsonl",
        "messages_column": "conversations",
    }
    assert "not read: bf16, output_dir" in file.notes[-1]
    assert any("lora_dropout 0" in note for note in file.notes)


def test_llamafactory(read, tmp_path):
    (tmp_path / "sets").mkdir()
    entry = {"file_name": "rows.json", "columns": {"prompt": "question", "response": "answer"}}
    (tmp_path / "sets" / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    file = read(FACTORY)
    assert file.title == "LLaMA-Factory"
    expected = {
        "data": str(tmp_path / "sets" / "rows.json"),
        "prompt_column": "question",
        "response_column": "answer",
        "rank": 8,
        "alpha": 16,
        "target_modules": "all-linear",
        "max_length": 2048,
        "precision": "bf16",
        "quantization": "4bit",
        "learning_rate": 1e-4,
    }
    assert expected.items() <= file.flags.items()
    assert "not read: stage, template" in file.notes[-1]


def test_a_dataset_that_is_listed_nowhere_is_named(read):
    file = read(FACTORY)
    assert "data" not in file.flags
    assert any("dataset mine" in note and "--data" in note for note in file.notes)


def test_trl(read):
    file = read(TRL)
    assert file.title == "TRL"
    expected = {"data": "user/chats", "method": "rslora", "rank": 8, "alpha": 32, "dropout": 0.05}
    assert expected.items() <= file.flags.items()
    assert not any("not read" in note for note in file.notes)


def test_full_fine_tuning_is_method_full(read):
    file = read("base_model: x\nlearning_rate: 1e-5\n")
    assert file.flags["method"] == "full"
    assert "rank" not in file.flags


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("base_model: x\nmicro_batch_size: many\n", "micro_batch_size & many"),
        ("base_model: x\nmicro_batch_size: 0\n", "micro_batch_size"),
        ("base_model: x\nadapter: ia3\n", "adapter & qlora"),
        ("base_model: x\nadapter: lora\nlora_r: 2.5\n", "lora_r"),
        ("base_model: x\nlearning_rate: 100\n", "learning_rate"),
        ("base_model: x\ndatasets: rows.jsonl\n", "datasets"),
        ("base_model: x\ndatasets: [{path: 3}]\n", "datasets[0].path"),
        ("base_model: x\ndatasets: [{path: a, split: 'train[:5%]'}]\n", "split & train[:5%]"),
        ("finetuning_type: freeze\n", "finetuning_type & lora"),
        ("stage: sft\nquantization_bit: 3\n", "quantization_bit"),
        ("use_peft: yes please\n", "use_peft"),
        ("some: thing\n", "base_model & finetuning_type & model_name_or_path"),
        ("- a\n", "keys and values"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_key(text, names, read):
    with pytest.raises(LayersiftError) as error:
        read(text)
    for name in ("theirs.yaml", *names.split(" & ")):
        assert name in str(error.value)


def test_advise_takes_it_and_flags_win(bert_directory, call, tmp_path):
    rows = [{"text": f"w{i % 7} w{i % 11}", "label": "yes" if i % 2 else "no"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    theirs = {
        "base_model": bert_directory,
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_modules": ["query"],
        "datasets": [{"path": "rows.jsonl", "split": "train"}],
        "micro_batch_size": 4,
        "num_epochs": 2,
        "sequence_len": 64,
        "learning_rate": 0.001,
        "wandb_project": "mine",
    }
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(theirs))
    done = call("advise", "--from", "theirs.yaml", "--rank", "2", "-o", "advice", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lora_r does not count; --rank does" in done.stderr
    assert "not read: wandb_project" in done.stderr
    recipe = yaml.safe_load((tmp_path / "advice" / "recipe.yaml").read_text())
    expected = {"rank": 2, "alpha": 8, "target_modules": "query", "batch_size": 4, "epochs": 2, "learning_rate": 0.001}
    assert {key: recipe["train"][key] for key in expected} == expected
    assert recipe["data"]["max_length"] == 64
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(theirs | {"lr_scheduler": "constant", "warmup_ratio": 0.1}))
    refused = call("advise", "--from", "theirs.yaml", "-o", "other", cwd=tmp_path)
    assert refused.returncode == 2
    assert "theirs.yaml: warmup_ratio has no effect" in refused.stderr
    bad = call("advise", "--from", "missing.yaml", "-o", "other", cwd=tmp_path)
    assert bad.returncode == 2
    assert "missing.yaml" in bad.stderr
    assert not (tmp_path / "other").exists()
