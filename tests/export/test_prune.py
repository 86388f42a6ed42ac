"""Pruned adapters against a truncated SVD of the products themselves, as PEFT loads them."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from layersift.adapt.store import Update, keep_largest
from layersift.errors import AdapterError, LayersiftError
from layersift.export.prune import Budget, prune, read_adapter
from tiny import tiny
from training import FAST, classify


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):

    place = tmp_path_factory.mktemp("whole") / "run"
    settings = replace(FAST, rank=4, target_modules="all-linear", epochs=4, ranks={"mlp": 2})
    classify(request.getfixturevalue("bert_directory")).train(place, settings)
    return place


def deltas(directory, model):
    """What each module's weight gains, by PEFT itself, in float64."""
    adapted = PeftModel.from_pretrained(model, str(directory)).double()
    modules = dict(adapted.base_model.model.named_modules())
    names = adapted.base_model.targeted_module_names
    return {name: modules[name].get_delta_weight("default").detach().numpy() for name in names}


def truncated(products, price, budget):
    """The products of numpy's SVD with the largest singular values of all that a budget allows."""
    parts = {name: np.linalg.svd(product, full_matrices=False) for name, product in products.items()}
    pooled = sorted(((value, name) for name, (_, s, _) in parts.items() for value in s), key=lambda e: -e[0])
    ranks = dict.fromkeys(products, 0)
    for value, name in pooled:
        budget -= price(name)
        if budget < 0 or value < 1e-9:
            break
        ranks[name] += 1
    kept = {n: (u[:, : ranks[n]] * s[: ranks[n]]) @ v[: ranks[n]] for n, (u, s, v) in parts.items()}
    return kept, ranks


def base(bert_directory):
    return AutoModelForSequenceClassification.from_pretrained(
        bert_directory, num_labels=2, ignore_mismatched_sizes=True
    )


@pytest.mark.parametrize("fraction", [0.6, 0.25, 0.06])
def test_what_is_left_is_the_truncated_svd_of_all_modules(run, bert_directory, tmp_path, fraction):
    whole = read_adapter(run)
    products = deltas(run, base(bert_directory))
    budget = int(fraction * whole.parameters)
    pruned = prune(run, Budget(parameters=budget), tmp_path / "small")
    expected, ranks = truncated(products, lambda name: sum(products[name].shape), budget)
    assert {**pruned.ranks, **dict.fromkeys(pruned.dropped, 0)} == ranks
    found = deltas(tmp_path / "small", base(bert_directory))
    assert set(found) == {name for name, rank in ranks.items() if rank}
    size = max(np.abs(product).max() for product in products.values())
    for name, delta in found.items():
        np.testing.assert_allclose(delta, expected[name], atol=1e-6 * size)
    lost = sum(np.sum((products[n] - expected[n]) ** 2) for n in products)
    everything = sum(np.sum(p**2) for p in products.values())
    assert pruned.relative_error == pytest.approx(math.sqrt(lost / everything), rel=1e-4)
    weights = load_file(tmp_path / "small" / "adapter_model.safetensors")
    left = sum(t.numel() for n, t in weights.items() if "lora_" in n)
    assert left == pruned.parameters <= budget
    by_layer = {}
    for name, product in products.items():
        layer = int(re.search(r"layer\.(\d+)\.", name)[1])
        by_layer[layer] = by_layer.get(layer, 0.0) + np.sum(product**2) / everything
    assert pruned.layers == pytest.approx(by_layer, rel=1e-4)
    assert list(pruned.layers) == sorted(by_layer, key=lambda layer: -by_layer[layer])


def test_a_small_run_is_a_run(run, bert_directory, tmp_path, call):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"w{i} w{i + 1}", "label": i % 2}) + "\n" for i in range(12)))
    told = call("prune", run, "--params", "900", "-o", tmp_path / "small", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert re.search(r"kept \d+ of [\d,]+ LoRA parameters", told.stdout)
    judged = call("evaluate", tmp_path / "small", "--data", rows, cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    record = json.loads((tmp_path / "small" / "layersift.json").read_text())
    assert record["pruned"]["parameters"] <= 900
    assert record["held_back"] is None
    selection = json.loads((tmp_path / "small" / "selection.json").read_text())
    assert record["mask"] == selection["mask"]
    assert sum(len(of) for of in selection["modules"].values()) == len(record["pruned"]["ranks"])
    card = (tmp_path / "small" / "README.md").read_text()
    assert all(f"`{name}`" in card for name in record["pruned"]["dropped"])
    assert f"{record['pruned']['relative_error']:.4f}" in card
    again = json.loads((tmp_path / "small" / "prune.json").read_text())
    assert {n: m["rank"] for n, m in again["modules"].items() if m["rank"]} == record["pruned"]["ranks"]


def test_bytes_are_those_of_the_file(run, tmp_path):
    size = (run / "adapter_model.safetensors").stat().st_size
    for budget in (size - 1, int(0.7 * size)):
        prune(run, Budget(bytes=budget), tmp_path / f"{budget}")
        written = (tmp_path / f"{budget}" / "adapter_model.safetensors").stat().st_size
        assert budget - 2500 < written <= budget
    with pytest.raises(AdapterError, match="takes"):
        prune(run, Budget(bytes=1000), tmp_path / "none")


def saved(directory, **options):
    """An adapter that PEFT wrote, with weights drawn at random in place of zeros."""
    torch.manual_seed(3)
    model = get_peft_model(tiny("llama"), LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **options}))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(directory)
    return directory


def test_adapters_of_peft_keep_their_scales(tmp_path):
    place = saved(
        tmp_path / "a",
        use_rslora=True,
        lora_alpha=6,
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 6},
        alpha_pattern={"v_proj": 3},
        layers_to_transform=[1, 2],
    )
    products = deltas(place, tiny("llama"))
    total = read_adapter(place).parameters
    prune(place, Budget(parameters=total // 2), tmp_path / "small")
    expected, _ = truncated(products, lambda name: sum(products[name].shape), total // 2)
    found = deltas(tmp_path / "small", tiny("llama"))
    for name, delta in found.items():
        np.testing.assert_allclose(delta, expected[name], atol=1e-5)
    assert "## Pruned" in (tmp_path / "small" / "README.md").read_text()


def test_bfloat16_stays_and_is_rounded_once(tmp_path):
    place = saved(tmp_path / "a")
    file = place / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    products = deltas(place, tiny("llama"))
    budget = read_adapter(place).parameters // 2
    prune(place, Budget(parameters=budget), tmp_path / "small")
    weights = load_file(tmp_path / "small" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    expected, _ = truncated(products, lambda name: sum(products[name].shape), budget)
    for name, delta in deltas(tmp_path / "small", tiny("llama")).items():
        assert np.linalg.norm(delta - expected[name]) < 0.01 * np.linalg.norm(expected[name])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_what_has_no_plain_low_rank_is_refused(options, said, tmp_path):
    place = saved(tmp_path / "a", **options)
    with pytest.raises(AdapterError, match=said):
        prune(place, Budget(parameters=100), tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_other_kinds_are_refused(tmp_path, bert_directory):

    classify(bert_directory).train(tmp_path / "run", replace(FAST, method="ia3", epochs=0.2))
    with pytest.raises(AdapterError, match="IA3"):
        prune(tmp_path / "run", Budget(parameters=100), tmp_path / "small")
    classify(bert_directory).train(tmp_path / "full", replace(FAST, method="full", epochs=0.2))
    with pytest.raises(LayersiftError, match="adapter_config"):
        prune(tmp_path / "full", Budget(parameters=100), tmp_path / "small")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "one of them"),
        (["--params", "1k", "--bytes", "1MB"], "one of them"),
        (["--params", "many"], "a number of parameters"),
        (["--bytes", "3"], "a size"),
        (["--params", "10"], "not enough for one direction"),
        (["--params", "2M"], "nothing is to be pruned"),
    ],
)
def test_budgets_that_are_none_are_refused(words, said, run, tmp_path, call):
    result = call("prune", run, *words, "-o", tmp_path / "small", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused():
    update = Update(torch.ones(2, 3), torch.full((4, 2), math.nan), 2.0)
    with pytest.raises(AdapterError, match="not finite"):
        keep_largest({"q": update}, 100)
