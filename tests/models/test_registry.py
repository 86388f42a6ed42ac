"""Blocks of every model type that transformers registers."""

import pytest
import torch
import transformers as tf

from layersift.errors import ModelError
from layersift.models.stacks import choose_stack, find_stacks
from registry import TABLE, page, try_all

# Convolutions throughout, or one block for all layers.
WITHOUT_BLOCKS = {
    *("albert", "bit", "efficientnet", "encodec", "glm_image_vqmodel", "hgnet_v2", "mobilenet_v1", "mobilenet_v2"),
    *("mobilevitv2", "poolformer", "regnet", "resnet", "swiftformer", "textnet", "univnet", "uvdoc"),
    *("pp_ocrv5_mobile_rec", "pp_ocrv5_server_rec", "pp_ocrv6_small_det", "pp_ocrv6_small_rec", "pp_ocrv6_tiny_rec"),
}


@pytest.mark.slow
def test_blocks_are_found_wherever_there_are_some():
    tried = try_all()
    assert len(tried) > 300
    built = [t for t in tried if t.verdict != "not built"]
    wrong = [t.model_type for t in built if t.verdict == "other count"]
    missed = [t.model_type for t in built if t.verdict == "no blocks" and t.model_type not in WITHOUT_BLOCKS]
    assert len(wrong) + len(missed) <= 0.01 * len(built), (wrong, missed)
    broken = [t for t in tried if t.verdict == "not built" and "requires the" not in t.why]
    assert len(broken) <= 0.05 * len(tried), [t.model_type for t in broken]
    if f"transformers {tf.__version__} registers" in TABLE.read_text():
        assert TABLE.read_text() == page(tried)


def test_a_block_shared_by_all_layers_is_explained():
    with torch.device("meta"):
        model = tf.AlbertModel(tf.AlbertConfig())
    with pytest.raises(ModelError, match="1 block runs 12 times, so an adapter on one layer is one on all"):
        find_stacks(model)


def test_lists_of_lists_are_several_stacks_to_be_named_by_path():
    with torch.device("meta"):
        model = tf.FunnelModel(tf.FunnelConfig(block_sizes=[2, 3], num_decoder_layers=2))
    stacks = find_stacks(model)
    assert [(s.path, s.num_layers) for s in stacks] == [
        ("encoder.blocks.0", 2),
        ("encoder.blocks.1", 3),
        ("decoder.layers", 2),
    ]
    with pytest.raises(ModelError, match=r"name one with --tower: encoder\.blocks\.0, encoder\.blocks\.1"):
        choose_stack(stacks)
    assert choose_stack(stacks, "encoder.blocks.1").num_layers == 3


def test_convolutions_over_one_token_are_matrices():
    with torch.device("meta"):
        model = tf.SqueezeBertModel(tf.SqueezeBertConfig(num_hidden_layers=5))
    assert [(s.tower, s.num_layers) for s in find_stacks(model)] == [("encoder", 5)]
