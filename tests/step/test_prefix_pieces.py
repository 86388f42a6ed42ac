"""Where the frozen prefix ends, what stands below it, and that its dropout is off where that is asked for."""

import pytest
import torch
from peft import LoraConfig

from layersift.adapt.attach import attach
from layersift.models.stacks import find_stack
from layersift.step.activation_cache import ActivationCache, dropouts
from layersift.step.callback import FrozenPrefix
from layersift.step.prefix import frozen_prefix, prefix_blocks, prefix_dropouts
from tiny import tiny


def adapted(name, layers, tower=None):
    base = tiny(name)
    return attach(base, find_stack(base, tower), layers, LoraConfig(r=2, target_modules="all-linear")).train()


@pytest.mark.parametrize(
    ("name", "tower", "layers", "cut", "without_graph"),
    [
        ("llama", None, (0,), 0, 0),
        ("llama", None, (1, 2), 1, 1),
        ("llama", None, (3,), 3, 3),
        ("t5", "encoder", (1,), 1, 1),
        ("t5", "decoder", (2,), 2, 2),  # the encoder below it has no gradient as it is
        ("llava", "language", (2,), 2, 2),
    ],
)
def test_the_prefix_ends_below_the_first_trained_block(name, tower, layers, cut, without_graph):
    model = adapted(name, layers, tower)
    assert len(prefix_blocks(model)) == cut
    with frozen_prefix(model) as blocks:
        assert blocks == without_graph


def test_where_nothing_is_trained_all_blocks_run_without_a_graph_but_there_is_no_cut():
    model = tiny("llama").requires_grad_(False)
    assert len(prefix_blocks(model)) == 0
    with frozen_prefix(model) as blocks:
        assert blocks == 4
    model.lm_head.requires_grad_()  # behind all of them
    with frozen_prefix(model) as blocks:
        assert blocks == 4
    model.model.embed_tokens.requires_grad_()  # before all of them
    with frozen_prefix(model) as blocks:
        assert blocks == 0


def test_dropout_of_embeddings_and_frozen_blocks_is_the_prefixes():
    model = adapted("bert", (2,))
    bert = model.get_base_model().bert
    assert prefix_dropouts(model)
    below = [bert.embeddings, *bert.encoder.layer[:2]]
    above = [*bert.encoder.layer[2:], model.get_base_model().dropout]
    with frozen_prefix(model, dropout=False):
        assert not dropouts(below)
        assert all(dropouts([part]) for part in above)
    assert all(dropouts([part]) for part in below)
    for module, name, _ in dropouts(below):
        setattr(module, name, 0.0)
    assert not prefix_dropouts(model)


def test_without_a_frozen_block_all_dropout_is_drawn():
    model = adapted("bert", range(4))
    with frozen_prefix(model, dropout=False) as blocks:
        assert blocks == 0
        assert dropouts([model.get_base_model().dropout])
        assert dropouts([model.get_base_model().bert.embeddings])


def test_states_above_the_prefix_are_the_same_with_and_without_it():
    model = adapted("llama", (2, 3))
    ids = torch.randint(5, 100, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    with frozen_prefix(model):
        found = model(input_ids=ids).logits
    assert torch.equal(found, wanted)
    assert found.requires_grad


def test_a_cache_is_served_to_the_first_trained_block_and_lower_blocks_do_nothing():
    model, cache = adapted("llama", (2, 3)), ActivationCache()
    ids = torch.randint(5, 100, (2, 7), generator=torch.Generator().manual_seed(0))
    layers = model.get_base_model().model.layers
    ran = []
    for place, layer in enumerate(layers):
        layer.mlp.register_forward_hook(lambda m, a, o, place=place: ran.append(place))
    with frozen_prefix(model, cache):
        cache.begin([4, 9], [7, 7])
        first = model(input_ids=ids).logits
        assert ran == [0, 1, 2, 3]
        ran.clear()
        cache.begin([9, 4], [7, 7])
        second = model(input_ids=ids.flip(0)).logits
        assert ran == [2, 3]
        torch.testing.assert_close(second.flip(0), first, atol=1e-6, rtol=1e-5)
        # States are the cache's, whatever the batch brings: another row's states give another row's logits.
        cache.begin([9, 9], [7, 7])
        torch.testing.assert_close(model(input_ids=ids).logits[0], first[1], atol=1e-6, rtol=1e-5)
    ran.clear()
    model(input_ids=ids)
    assert ran == [0, 1, 2, 3]
    assert cache.served == 2
    assert not any("forward" in vars(layer) for layer in layers)


def test_a_callback_begins_and_ends_with_the_training():
    model = adapted("llama", (2, 3))
    layers = model.get_base_model().model.layers
    callback = FrozenPrefix()
    callback.on_train_end(None, None, None)  # without a beginning
    callback.on_train_begin(None, None, None, model=model)
    assert callback.blocks == 2
    assert ["forward" in vars(layer) for layer in layers] == [True, True, False, False]
    callback.on_train_end(None, None, None)
    callback.on_train_end(None, None, None)
    assert not any("forward" in vars(layer) for layer in layers)
