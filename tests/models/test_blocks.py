"""Block stacks of the real transformers classes, found without their names."""

import pytest
import transformers as tf
from torch import nn

from layersift.errors import ModelError
from layersift.models.stacks import choose_stack, find_stack, find_stacks
from tiny import CLASSES, tiny
from tiny_types import tiny_model

EXPECTED = {  # architecture: [(path, tower, number of blocks, class of a block)]
    "bert": [("bert.encoder.layer", "encoder", 4, "BertLayer")],
    "roberta": [("roberta.encoder.layer", "encoder", 4, "RobertaLayer")],
    "deberta-v2": [("deberta.encoder.layer", "encoder", 4, "DebertaV2Layer")],
    "gpt2": [("transformer.h", "decoder", 4, "GPT2Block")],
    "gpt-neox": [("gpt_neox.layers", "decoder", 4, "GPTNeoXLayer")],
    "llama": [("model.layers", "decoder", 4, "LlamaDecoderLayer")],
    "mistral": [("model.layers", "decoder", 4, "MistralDecoderLayer")],
    "gemma": [("model.layers", "decoder", 4, "GemmaDecoderLayer")],
    "qwen3": [("model.layers", "decoder", 4, "Qwen3DecoderLayer")],
    "t5": [("encoder.block", "encoder", 3, "T5Block"), ("decoder.block", "decoder", 4, "T5Block")],
    "llava": [
        ("model.vision_tower.encoder.layers", "vision", 3, "CLIPEncoderLayer"),
        ("model.language_model.layers", "language", 4, "LlamaDecoderLayer"),
    ],
    "qwen3-moe": [("model.layers", "decoder", 4, "Qwen3MoeDecoderLayer")],
    "jamba": [("model.layers", "decoder", 4, "JambaMambaDecoderLayer")],
}


@pytest.mark.parametrize("name", CLASSES)
def test_stacks_paths_towers_and_classes(name):
    model = tiny(name)
    stacks = find_stacks(model)
    assert [(s.path, s.tower, s.num_layers, s.block_classes[0]) for s in stacks] == EXPECTED[name]
    for stack in stacks:
        assert [type(b).__name__ for b in stack.blocks(model)] == list(stack.block_classes)


def test_a_bare_backbone_is_found_too():
    assert [s.path for s in find_stacks(tiny("llama", tf.LlamaModel))] == ["layers"]
    assert [s.path for s in find_stacks(tiny("gpt2", tf.GPT2Model))] == ["h"]


def test_the_language_tower_is_the_default_and_others_on_request():
    stacks = find_stacks(tiny("llava"))
    assert choose_stack(stacks).tower == "language"
    assert choose_stack(stacks, "vision").num_layers == 3
    with pytest.raises(ModelError, match=r"no audio tower; it has: language, vision"):
        choose_stack(stacks, "audio")


def test_a_model_without_blocks_is_named():
    with pytest.raises(ModelError, match="Sequential has no transformer blocks"):
        find_stacks(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    with pytest.raises(ModelError, match="ResNetModel has no transformer blocks"):
        find_stacks(tf.ResNetModel(tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])))


@pytest.mark.parametrize("model_type", ["bloom", "mpt", "mamba", "rwkv", "xglm", "xlnet", "llama", "gpt2"])
def test_what_writes_alone_is_a_decoder(model_type):
    assert find_stack(tiny_model(model_type, "instruction")).tower == "decoder"


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "deberta-v2"])
def test_what_fills_gaps_is_an_encoder_unless_its_configuration_says_otherwise(model_type):
    assert find_stack(tiny_model(model_type, "classification")).tower == "encoder"
