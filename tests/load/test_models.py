"""Loading models: what is read, what is refused."""

import json

import pytest
import torch
import transformers as tf

from layersift.config.model import ModelSource
from layersift.errors import ModelError
from layersift.load.blocks import find_stacks
from layersift.load.models import empty_model, load_model, load_tokenizer, pad_id
from tiny import CONFIGS, tiny
from words import tokenizer


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_blocks_are_found_without_weights(tmp_path, name):
    model = tiny(name)
    config = model.config
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    empty = empty_model(ModelSource(str(tmp_path)))
    assert type(empty) is type(model)
    assert find_stacks(empty) == find_stacks(model)
    assert all(p.is_meta for p in empty.parameters())


def test_the_class_follows_the_task(bert_directory, llama_directory):
    loaded = load_model(ModelSource(bert_directory), "classification", 5)
    assert type(loaded.model) is tf.BertForSequenceClassification
    assert loaded.model.config.problem_type == "single_label_classification"
    assert loaded.model.classifier.out_features == 5
    assert not loaded.model.training
    assert type(load_model(ModelSource(llama_directory), "instruction").model) is tf.LlamaForCausalLM
    headed = load_model(ModelSource(llama_directory), "classification", 3).model
    assert type(headed) is tf.LlamaForSequenceClassification
    assert headed.config.pad_token_id == 0


def test_a_new_head_is_drawn_by_the_seed(bert_directory):
    heads = [load_model(ModelSource(bert_directory), "classification", 4, s).model.classifier.weight for s in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_revision_of_a_directory_follows_its_weights(tmp_path):
    revisions = []
    for seed in (0, 0, 1):
        directory = tmp_path / str(len(revisions))
        tiny("bert", seed=seed).save_pretrained(directory)
        tokenizer().save_pretrained(directory)
        revisions.append(load_model(ModelSource(str(directory)), "classification", 2).revision)
    assert revisions[0] == revisions[1] != revisions[2]
    assert revisions[0].startswith("sha256:")


def test_pickled_weights_are_never_read(tmp_path):
    model = tiny("bert")
    model.config.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(ModelSource(str(tmp_path)), "classification", 2)


def test_blocks_without_weights_are_refused(tmp_path, bert_directory):
    tokenizer().save_pretrained(tmp_path)
    tiny("bert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))
    with pytest.raises(
        ModelError, match=r"lacks weights for 32 parameters of its blocks, (such )?as bert.encoder.layer.4"
    ):
        load_model(ModelSource(str(tmp_path)), "classification", 2)


def test_instruction_data_need_a_model_that_writes(bert_directory):
    with pytest.raises(ModelError, match="does not write text; instruction data need a decoder"):
        load_model(ModelSource(bert_directory), "instruction")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/model", "no such file or directory"),
        ("./nowhere.gguf", "no such file or directory"),
        ("{tmp}", "no config.json in this directory"),
        ("{tmp}/file.bin", "expected a directory, a Hub id or a .gguf file"),
        ("{tmp}/broken.gguf", "not a .gguf file that transformers can read"),
        ("no-such-owner/no-such-model", "cannot read the model 'no-such-owner/no-such-model'"),
    ],
)
def test_sources_that_are_not_models(tmp_path, name, message, monkeypatch):
    monkeypatch.setenv("LAYERSIFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file.bin").write_bytes(b"x")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(ModelError, match=message) as caught:
        empty_model(ModelSource(name.format(tmp=tmp_path)))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_dtypes(bert_directory):
    loaded = load_model(ModelSource(bert_directory, dtype="bfloat16"), "classification", 2)
    assert loaded.model.dtype == torch.bfloat16
    with pytest.raises(ModelError, match="unknown dtype 'int8'"):
        load_model(ModelSource(bert_directory, dtype="int8"), "classification", 2)


def test_padding_token_has_a_fallback(bert_directory):
    tok = load_tokenizer(ModelSource(bert_directory))
    assert pad_id(tiny("bert"), tok) == 0
    assert pad_id(tiny("roberta"), None) == 1
    assert pad_id(torch.nn.Linear(1, 1), None) == 0
