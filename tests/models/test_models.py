"""Loading models: what is read, what is refused."""

import json

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from layersift.config.recipe import ModelSource
from layersift.errors import LayersiftError, ModelError
from layersift.models.load import empty_model, load_model, load_tokenizer, pad_id
from layersift.models.stacks import find_stacks
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
    assert revisions[0].startswith("weights:")


def test_pickled_weights_are_never_read(tmp_path):
    model = tiny("bert")
    model.config.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(ModelSource(str(tmp_path)), "classification", 2)


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dtype", "stream"), [(None, False), (None, True), ("bfloat16", False), ("float16", False)])
def test_the_empty_model_is_of_the_type_that_is_loaded(tmp_path, saved, dtype, stream):
    tiny("llama").to(saved).save_pretrained(tmp_path)
    tokenizer("decoder").save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path), dtype=dtype, stream=stream)
    empty, loaded = empty_model(source, "instruction"), load_model(source, "instruction").model
    assert {p.dtype for p in empty.parameters()} == {p.dtype for p in loaded.parameters()}
    assert {b.dtype for b in empty.buffers()} == {b.dtype for b in loaded.buffers()}


def test_blocks_without_weights_are_refused(tmp_path, bert_directory):
    tokenizer().save_pretrained(tmp_path)
    tiny("bert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))
    with pytest.raises(
        ModelError, match=r"lacks weights for 32 parameters, such as bert\.encoder\.layer\.4.*; only a new head may"
    ):
        load_model(ModelSource(str(tmp_path)), "classification", 2)


def without(directory, model, part):
    """A checkpoint from which some weights were left out, and the name of the first of them."""
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(directory)
    tokenizer("decoder" if "Causal" in type(model).__name__ else "encoder").save_pretrained(directory)
    weights = load_file(directory / "model.safetensors")
    gone = sorted(name for name in weights if part in name)
    save_file({n: w for n, w in weights.items() if n not in gone}, directory / "model.safetensors", {"format": "pt"})
    return gone[0]


@pytest.mark.parametrize(
    ("name", "part", "kind"),
    [
        ("bert", "word_embeddings", "classification"),
        ("bert", "embeddings.LayerNorm", "regression"),
        ("deberta-v2", "rel_embeddings", "classification"),
        ("llama", "embed_tokens", "instruction"),
        ("llama", "model.norm", "instruction"),
        ("llama", "lm_head", "instruction"),
        ("gpt2", "wpe", "text"),
        ("t5", "shared", "instruction"),
    ],
)
def test_only_a_new_head_may_be_missing(tmp_path, name, part, kind):
    model = tiny(name)
    if "lm_head" in part:
        model.config.tie_word_embeddings = False
    gone = without(tmp_path, model, part)
    with pytest.raises(ModelError, match=rf"lacks weights for \d parameters, such as .*{gone.rpartition('.')[2]}"):
        load_model(ModelSource(str(tmp_path)), kind, 2)


@pytest.mark.parametrize("part", ["classifier", "pooler"])
def test_a_head_may_be_new_and_a_new_pooler_is_told(tmp_path, part, caplog):
    without(tmp_path, tiny("bert"), part)
    loaded = load_model(ModelSource(str(tmp_path)), "classification", 2)
    assert loaded.model.num_labels == 2
    assert ("has no bert.pooler.dense; it is new" in caplog.text) == (part == "pooler")


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "t5"])
def test_a_model_without_tokenizer_files_is_refused(tmp_path, name):
    model = tiny(name)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no vocabulary, only special tokens"):
        load_model(ModelSource(str(tmp_path)), "text")


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
    with pytest.raises(LayersiftError, match="unknown dtype 'int8'"):
        ModelSource(bert_directory, dtype="int8")


def test_padding_token_has_a_fallback(bert_directory):
    tok = load_tokenizer(ModelSource(bert_directory))
    assert pad_id(tiny("bert"), tok) == 0
    assert pad_id(tiny("roberta"), None) == 1
    assert pad_id(torch.nn.Linear(1, 1), None) == 0
