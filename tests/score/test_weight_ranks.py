"""Standings of weights within their kind, norms in the activations' metric, and rules that look at no data."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from layersift.data.examples import Example
from layersift.models.stacks import BlockStack, find_stack
from layersift.score.context import ScoringContext
from layersift.score.criteria import plain
from layersift.score.criteria.lora_drop import _measuring
from layersift.score.criteria.resnorm import RESNORM, _squared_norm
from layersift.score.probe import Undefined
from layersift.score.short_training import with_adapters
from layersift.score.weights import linear_maps, matrices, rank_within_kind, weight_of
from tiny import tiny


class Blocks(nn.Module):
    """Blocks of maps that hold one number each, which is what is asked of them, in some width."""

    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.ModuleList()
        for names in blocks:
            block = nn.Module()
            for name, (value, width) in names.items():
                block.add_module(name, nn.Linear(width, width))
                nn.init.constant_(block.get_submodule(name).weight, value)
            self.blocks.append(block)

    def ranks(self):
        stack = BlockStack("blocks", "encoder", len(self.blocks), ())

        def of(weight):
            assert bool(torch.isfinite(weight).all()), "of others no singular values can be had"
            return float(weight[0, 0])

        return rank_within_kind(self, stack, of)


def test_standings_go_from_none_to_one_and_ties_share_theirs():
    model = Blocks(*({"a": (value, 2)} for value in (5.0, 1.0, 5.0, 9.0, -3.0)))
    assert model.ranks() == pytest.approx([0.625, 0.25, 0.625, 1.0, 0.0])


def test_a_layers_standing_is_the_mean_over_its_kinds():
    model = Blocks({"a": (1.0, 2), "b": (7.0, 3)}, {"a": (2.0, 2), "b": (6.0, 3)}, {"a": (3.0, 2)})
    assert model.ranks() == pytest.approx([(0 + 1) / 2, (0.5 + 0) / 2, 1.0])


def test_kinds_are_of_one_name_and_one_shape_and_the_only_one_of_its_kind_stands_nowhere():
    model = Blocks({"a": (1.0, 2)}, {"a": (2.0, 2)}, {"a": (0.0, 3)}, {"b": (5.0, 2)})
    nowhere = Undefined("no linear map of a kind that other layers have")
    assert model.ranks() == [0.0, 1.0, nowhere, nowhere]


def test_what_is_no_number_does_not_push_others_about():
    values = (1.0, math.nan, 3.0, math.inf, 2.0)
    model = Blocks(*({"a": (value, 2)} for value in values))
    found = model.ranks()
    assert [found[0], found[4], found[2]] == [0.0, 0.5, 1.0]
    assert isinstance(found[1], Undefined)
    assert isinstance(found[3], Undefined)


def test_linear_maps_are_named_relative_to_their_block():
    model = tiny("gpt2")
    found = [(layer, name) for layer, name, _ in linear_maps(model, find_stack(model))]
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert found == [(layer, name) for layer in range(4) for name in names]
    module = model.transformer.h[1].mlp.c_fc
    assert torch.equal(weight_of(module), module.weight)
    assert not weight_of(module).requires_grad


@pytest.mark.parametrize("samples", [1, 4])
def test_the_norm_in_the_metric_of_the_activations_written_out(samples):
    """|G Sigma^(-1/2)|^2 by an eigendecomposition, with a thousandth of the mean diagonal added."""
    rng = np.random.default_rng(0)
    x, gradient = rng.normal(size=(30, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(4, 6))
    second = x.T @ x / 30
    second += 1e-3 * np.trace(second) / 6 * np.eye(6)
    values, vectors = np.linalg.eigh(second)
    wanted = np.square(gradient / samples @ vectors / np.sqrt(values)).sum()
    mean = torch.from_numpy(gradient / samples)
    assert _squared_norm(mean, torch.from_numpy(x.T @ x / 30)) == pytest.approx(wanted, rel=1e-9)
    assert math.isnan(_squared_norm(mean, torch.full((6, 6), math.inf)))


def instructions(lengths):
    rng = np.random.default_rng(0)
    made = []
    for length in lengths:
        ids = tuple(int(t) for t in rng.integers(5, 100, length))
        made.append(Example(ids, (True,) * length, (False,) * 2 + (True,) * (length - 2)))
    return tuple(made)


def test_padding_does_not_move_the_norm_in_the_metric_of_the_activations(monkeypatch):
    model = tiny("llama")
    given = ScoringContext(model, find_stack(model), instructions((4, 9, 6, 5)), "instruction")
    together = RESNORM.score(given)
    monkeypatch.setattr("layersift.score.gradients.TOKEN_BUDGET", 1)
    assert together == pytest.approx(RESNORM.score(given), rel=1e-3)


def test_what_adapters_add_is_the_squared_length_of_their_update():
    model = tiny("llama")
    given = ScoringContext(model, find_stack(model), instructions((7,)), "instruction")
    added, wanted = [0.0] * 4, [0.0] * 4
    with with_adapters(given) as adapted, torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))

        def look(layer, module):
            def hook(_module, args, _output):
                low = args[0].double() @ module.lora_A["default"].weight.double().T
                wanted[layer] += float((2 * low @ module.lora_B["default"].weight.double().T).square().sum())

            return hook

        maps = [(i, m) for i, b in enumerate(model.model.layers) for m in b.modules() if hasattr(m, "lora_A")]
        assert len(maps) == 8  # PEFT's default: queries and values
        handles = [module.base_layer.register_forward_hook(look(layer, module)) for layer, module in maps]
        ids = torch.tensor([given.examples[0].input_ids])
        model(input_ids=ids)
        once = list(wanted)
        for handle in handles:
            handle.remove()
        with _measuring(given, added):
            model(input_ids=ids)
            model(input_ids=ids)
        model(input_ids=ids)  # no longer looked at
    assert min(once) > 0
    assert added == pytest.approx([2 * w for w in once], rel=1e-4)


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        (plain.FIRST, {5: (0, 1, 2, 3, 4), 6: (0, 1, 2, 3, 4, 5)}),
        (plain.LAST, {5: (4, 3, 2, 1, 0), 6: (5, 4, 3, 2, 1, 0)}),
        (plain.MIDDLE, {5: (2, 3, 1, 4, 0), 6: (3, 2, 4, 1, 5, 0)}),
        (plain.ALTERNATE, {5: (4, 2, 0, 3, 1), 6: (5, 3, 1, 4, 2, 0)}),
        (plain.FIRST_AND_LAST, {5: (4, 0, 1, 2, 3), 6: (5, 0, 1, 2, 3, 4)}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_order_of_the_plain_rules(rule, order):
    for m, layers in order.items():
        given = ScoringContext(None, BlockStack("b", "encoder", m, ()), (), "text")
        scores = rule.score(given)
        assert tuple(sorted(range(m), key=lambda i: (-scores[i], i))) == layers


def test_the_random_rule_draws_every_order_by_the_seed():
    given = ScoringContext(None, BlockStack("b", "encoder", 3, ()), (), "text")
    drawn = [tuple(plain.RANDOM.score(dataclasses.replace(given, seed=seed))) for seed in range(60)]
    assert len(set(drawn)) == 6
    assert all(sorted(scores) == [0, 1, 2] for scores in drawn)
    assert drawn[7] == tuple(plain.RANDOM.score(dataclasses.replace(given, seed=7)))


def test_experts_that_are_stored_as_one_tensor_are_read_one_by_one():
    model = tiny("qwen3-moe")
    stack = find_stack(model)
    found = [(layer, name, tuple(weight.shape)) for layer, name, weight in matrices(model, stack)]
    for layer, block in enumerate(stack.blocks(model)):
        for name, parameter in block.named_parameters():
            if parameter.ndim == 3:
                for expert in range(len(parameter)):
                    assert (layer, f"{name}[{expert}]", tuple(parameter.shape[1:])) in found
    assert any("experts" in name for _, name, _ in found)
    assert len(set(found)) == len(found)
    before = rank_within_kind(model, stack, lambda weight: float(weight.norm()))
    with torch.no_grad():
        for parameter in stack.blocks(model)[1].parameters():
            if parameter.ndim == 3:
                parameter *= 100
    after = rank_within_kind(model, stack, lambda weight: float(weight.norm()))
    assert after[1] > before[1]


def test_a_convolutions_kernel_is_no_stack_of_maps():
    block = nn.Module()
    block.conv, block.map = nn.Conv1d(4, 4, 3), nn.Linear(4, 4)
    model = nn.Module()
    model.blocks = nn.ModuleList([block])
    assert [name for _, name, _ in matrices(model, BlockStack("blocks", "encoder", 1, ()))] == ["map"]


def test_experts_one_below_the_other_are_matrices_each_and_vectors_are_none():
    """DBRX stacks its experts in two dimensions; RWKV's (1, 1, d) are vectors."""
    dbrx = tf.DbrxForCausalLM(
        tf.DbrxConfig(
            d_model=32,
            n_heads=4,
            n_layers=2,
            vocab_size=120,
            max_seq_len=64,
            attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
            ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        )
    )
    found = {(layer, name): weight for layer, name, weight in matrices(dbrx, find_stack(dbrx))}
    experts = dbrx.transformer.blocks[1].ffn.experts.mlp
    for name in ("w1", "v1", "w2"):
        for expert in range(4):
            wanted = getattr(experts, name).detach()[expert * 48 : (expert + 1) * 48]
            assert torch.equal(found[1, f"ffn.experts.mlp.{name}[{expert}]"], wanted)
    rwkv = tf.RwkvForCausalLM(tf.RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=120, context_length=64))
    stack = find_stack(rwkv)
    linear = {(layer, name) for layer, name, _ in linear_maps(rwkv, stack)}
    assert {(layer, name) for layer, name, _ in matrices(rwkv, stack)} == linear
