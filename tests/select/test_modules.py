"""Modules and ranks within a budget: energies against autograd, the knapsack against all choices, what is adapted."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, VeraConfig
from safetensors import safe_open

from cli import layersift
from contexts import context, gradients_one_by_one
from layersift import select_layers
from layersift.config.select import SelectSettings
from layersift.errors import LayersiftError, SelectionError
from layersift.records.selection import Selection
from layersift.score.gradients import DIRECTIONS, _projections, module_energies
from layersift.select.modules import allot_ranks, lowest_affordable
from tiny import tiny
from words import tokenizer

ROWS = [{"question": f"w{i} w{2 * i % 40}", "answer": f"w{i} w{i + 1}"} for i in range(16)]


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_energies_are_those_of_the_mean_gradient_in_the_sketch(name):
    given_ = context(name)
    found = module_energies(given_.gradients())
    one_by_one, counts = gradients_one_by_one(given_)
    checked = 0
    for (layer, leaf), energies in found.items():
        mean = sum(one_by_one[layer][leaf]) / counts.sum()
        if name == "gpt2":
            mean = mean.T  # its maps are stored the other way round
        left, right = _projections(given_.seed, f"{layer}:{leaf}", *mean.shape, torch.device("cpu"))
        expected = np.linalg.svd((left.double().T @ mean @ right.double()).numpy(), compute_uv=False) ** 2
        np.testing.assert_allclose(energies, expected, rtol=2e-3, atol=1e-6 * expected[0])
        assert len(energies) == DIRECTIONS
        checked += 1
    assert checked >= 8


@st.composite
def knapsacks(draw):
    keys = [(0, "a"), (1, "b"), (1, "c")]
    energies = {
        key: tuple(sorted(draw(st.lists(st.floats(0.01, 10), min_size=1, max_size=3)), reverse=True)) for key in keys
    }
    prices = {key: draw(st.integers(1, 6)) for key in keys}
    return energies, prices, draw(st.integers(1, 40))


@given(knapsacks())
@settings(max_examples=300)
def test_a_budget_is_shared_out_as_well_as_by_trying_everything_but_for_the_last_piece(knapsack):
    energies, prices, budget = knapsack
    taken = allot_ranks(energies, prices, budget)

    def worth(counts):
        return sum(sum(energies[key][:count]) for key, count in counts.items())

    def cost(counts):
        return sum(prices[key] * count for key, count in counts.items())

    assert cost(taken) <= budget
    keys = list(energies)
    ways = itertools.product(*(range(len(energies[key]) + 1) for key in keys))
    best = max(worth(c) for way in ways if cost(c := dict(zip(keys, way, strict=True))) <= budget)
    assert worth(taken) >= best - max(of[0] for of in energies.values()) - 1e-9
    if len(set(prices.values())) == 1:
        assert worth(taken) == pytest.approx(best)


def test_the_cut_is_the_lowest_that_is_affordable():
    def cost(layers):
        return 10 - layers[0] + len(layers)

    assert lowest_affordable(5, cost, 1.0) == 0
    assert lowest_affordable(5, cost, 13 / 15) == 1
    with pytest.raises(SelectionError, match=r"within 0\.1 of the cost of all; the last takes 0\.47"):
        lowest_affordable(5, cost, 0.1)


def chosen_on(model, config=None, **limits):
    return select_layers(
        model, ROWS, tokenizer("decoder"), adapter=config or LoraConfig(r=4, lora_alpha=8), modules=True, **limits
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_exactly_the_modules_are_adapted_at_their_ranks(name, tmp_path):
    model = tiny(name)
    found = chosen_on(model, budget_params=2000)
    assert found.modules is not None
    assert sorted(found.modules) == list(found.selected_layers)
    found.save(tmp_path / "s.json")
    assert Selection.load(tmp_path / "s.json") == found
    peft_model = found.attach(tiny(name), LoraConfig(r=4, lora_alpha=8))
    stack = found.stack(model)
    wanted = {f"{stack.block_path(i)}.{m}": rank for i, of in found.modules.items() for m, rank in of.items()}
    adapted = {n.removeprefix("base_model.model."): m for n, m in peft_model.named_modules() if hasattr(m, "lora_A")}
    assert {n: m.r["default"] for n, m in adapted.items()} == wanted
    assert {m.scaling["default"] for m in adapted.values()} == {2.0}
    trained = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)
    assert trained <= 2000
    shapes = [min(m.lora_A["default"].weight.shape[1] + m.lora_B["default"].weight.shape[0] for m in adapted.values())]
    assert 2000 - trained < min(shapes) + max(shapes)  # it is used up
    assert max(wanted.values()) <= 8
    assert str(found).endswith(f"({found.rule}; gradient-energy, 16 samples)")


def test_with_an_objective_nothing_below_the_cut_is_adapted_and_the_parameters_are_as_many():
    model = tiny("llama")
    found = chosen_on(model, objective="time=0.7")
    lowest = min(found.modules)
    assert lowest > 0
    assert f"layers from {lowest} on" in found.rule
    both = chosen_on(model, objective="time=0.7", budget_params=1500)
    assert min(both.modules) >= lowest
    peft_model = found.attach(tiny("llama"), LoraConfig(r=4, lora_alpha=8))
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    layers = select_layers(model, ROWS, tokenizer("decoder"), criterion="last", top_n=4 - lowest)
    count = [
        sum(p.numel() for p in m.parameters() if p.requires_grad)
        for m in (peft_model, layers.attach(tiny("llama"), config))
    ]
    assert 0.9 * count[1] <= count[0] <= count[1]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"budget_params": 10}, "budget-params 10 is less than the cheapest module costs"),
        ({}, "--modules needs --budget-params, --objective or both"),
        ({"budget_params": 1000, "ratio": 0.5}, "leave --ratio away"),
        ({"budget_params": 1000, "position": "last"}, "leave --position away"),
    ],
)
def test_what_modules_cannot_be_chosen_by_is_refused(limits, message):
    with pytest.raises(LayersiftError, match=message):
        chosen_on(tiny("llama"), **limits)


def test_methods_without_ranks_by_module_are_refused():
    with pytest.raises(LayersiftError, match="VeraConfig has one rank for all modules; choose whole layers"):
        chosen_on(tiny("llama"), VeraConfig(target_modules=["q_proj"]), budget_params=1000)
    with pytest.raises(LayersiftError, match="does not adapt modules of chosen layers"):
        chosen_on(tiny("llama"), PromptTuningConfig(), budget_params=1000)
    with pytest.raises(SelectionError, match="criterion"):
        SelectSettings(modules=True, budget_params=1000, criterion="fisher")


def test_a_file_whose_modules_and_layers_disagree_is_refused(tmp_path):
    found = chosen_on(tiny("llama"), budget_params=2000)
    found.save(tmp_path / "s.json")
    values = json.loads((tmp_path / "s.json").read_text())
    values["modules"]["3"] = {"mlp.up_proj": 0}
    values["selected_layers"] = sorted({*values["selected_layers"], 3})
    values["mask"] = "".join(str(int(i in values["selected_layers"])) for i in range(4))
    (tmp_path / "s.json").write_text(json.dumps(values))
    with pytest.raises(SelectionError, match="modules: a rank below 1"):
        Selection.load(tmp_path / "s.json")
    del values["modules"]["3"]
    (tmp_path / "s.json").write_text(json.dumps(values))
    if 3 in found.selected_layers:
        with pytest.raises(SelectionError, match="modules are of layers"):
            Selection.load(tmp_path / "s.json")


def test_the_command_line_selects_inspects_and_trains_modules(bert_directory, tmp_path):
    rows = [{"text": f"w{i % 7} w{i % 11}", "label": "yes" if i % 2 else "no"} for i in range(24)]
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    at = ["--data", data]
    said = layersift("select", bert_directory, *at, "--modules", "--budget-params", "2k", "-o", tmp_path / "s.json")
    assert said.returncode == 0, said.stderr
    kept = json.loads((tmp_path / "s.json").read_text())
    modules = {(int(i), name): rank for i, of in kept["modules"].items() for name, rank in of.items()}
    assert f"{len(modules)} modules within 2,000 trained parameters" in said.stdout
    ((_, name), rank) = next(iter(modules.items()))
    assert f"{name} {rank}" in said.stdout
    shown = layersift(
        "inspect", bert_directory, "--selection", tmp_path / "s.json", "--plan", "--tokens", "32", "--json"
    )
    assert shown.returncode == 0, shown.stderr
    inspected = json.loads(shown.stdout)
    assert len(inspected["selection"]["modules"]) == len(modules)
    planned = next(p for p in inspected["plan"] if p["name"] == "selected")
    made = layersift(
        *("train", bert_directory, *at, "--selection", tmp_path / "s.json", "-o", tmp_path / "run", "--epochs", "1")
    )
    assert made.returncode == 0, made.stderr
    with safe_open(tmp_path / "run" / "adapter_model.safetensors", "pt") as file:
        ranks = {k: file.get_tensor(k).shape[0] for k in file.keys() if "lora_A" in k}  # noqa: SIM118
        size = sum(file.get_tensor(k).numel() for k in file.keys() if "lora_" in k)  # noqa: SIM118
    assert sorted(ranks.values()) == sorted(modules.values())
    assert size <= 2000
    assert planned["parameters"] == pytest.approx(size, abs=70)  # a head apart
    judged = layersift("evaluate", tmp_path / "run", *at)
    assert judged.returncode == 0, judged.stderr
    refused = layersift(
        *("train", bert_directory, *at, "--selection", tmp_path / "s.json", "-o", tmp_path / "r2", "--rank-of", "mlp=2")
    )
    assert refused.returncode == 2
    assert "--rank-of has no effect" in refused.stderr


@pytest.mark.parametrize("rank", [1, 4, 8, 12, 20])
def test_ranks_reach_twice_the_one_that_was_asked_for(rank):
    found = chosen_on(tiny("llama"), LoraConfig(r=rank, lora_alpha=2 * rank), budget_params=10**7)
    ranks = [r for of in found.modules.values() for r in of.values()]
    assert max(ranks) == 2 * rank
