"""From rows or batches to a selection, and the selection file."""

import itertools
import json
import math

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from torch.utils.data import DataLoader

import layersift
from layersift.config.select import SelectSettings, how_many
from layersift.errors import DataError, LayersiftError, SelectionError
from layersift.models.stacks import find_stacks
from layersift.records.selection import LayerScores, Selection
from layersift.select.afford import count_within_budget
from layersift.select.layers import top_layers
from layersift.select.sample import criterion_of
from layersift.select_in_memory import select_layers
from tiny import selection_of, tiny
from words import tokenizer


def texts(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"text": " ".join(f"w{i}" for i in rng.integers(0, 40, rng.integers(3, 9))), "label": i % 2} for i in range(n)
    ]


def problems(n=20):
    return [{"question": t["text"], "answer": f"{t['text']} # {i}"} for i, t in enumerate(texts(n))]


def scores(importance):
    undefined = {i: "constant" for i, v in enumerate(importance) if v is None}
    return LayerScores("cka", tuple(importance), undefined, (0.5,) * len(importance), 8, 0.0)


@pytest.mark.parametrize(
    ("settings", "layers", "count"),
    [({}, 6, 3), ({}, 7, 3), ({"ratio": 0.29}, 100, 29), ({"ratio": 1.0}, 5, 5), ({"top_n": 2}, 6, 2)],
)
def test_number_of_layers(settings, layers, count):
    assert how_many(SelectSettings(**settings), layers) == count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0}, "ratio 0 is out of range"),
        ({"ratio": 2}, "ratio 2 is out of range"),
        ({"ratio": math.nan}, "ratio nan is out of range"),
        ({"ratio": 0.5, "top_n": 1}, "one of ratio, top-n, budget-params, threshold and objective"),
        ({"top_n": 1, "budget_params": 5}, "one of ratio"),
        ({"budget_params": "2G"}, "expected a number of parameters such as 2M"),
        ({"budget_params": 0}, "expected a number of parameters"),
        ({"top_n": 0}, "top-n 0"),
        ({"max_samples": 7}, "at least 8"),
        ({"position": "middle"}, "unknown position 'middle'"),
        ({"criterion": "cca"}, "unknown criterion 'cca'"),
        ({"compat": "thesis"}, "unknown compatibility"),
        ({"compat": "paper", "position": "mean"}, "which has no --position; leave it away"),
        ({"compat": "paper", "criterion": "fisher"}, "which has no --criterion; leave it away"),
        ({"compat": "paper", "threshold": 0.1}, "which has no --threshold; leave it away"),
        ({"compat": "paper", "objective": "time=0.5"}, "which has no --objective; leave it away"),
        ({"compat": "paper", "threshold": 0.1, "until_stable": 0.9}, "--threshold, --until-stable; leave them away"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(LayersiftError, match=message):
        criterion_of(SelectSettings(**settings))


def test_too_few_or_too_many_layers():
    with pytest.raises(SelectionError, match=r"ratio 0\.1 of 6 layers is less than one"):
        how_many(SelectSettings(ratio=0.1), 6)
    with pytest.raises(SelectionError, match="top-n 7 is more than the 6 layers"):
        how_many(SelectSettings(top_n=7), 6)


def test_ties_go_to_the_lower_layer_and_undefined_ones_come_last():
    assert top_layers(scores([0.1, 0.5, 0.5, 0.5]), 2) == (1, 2)
    assert top_layers(scores([None, 0.1, 0.3, None]), 2) == (1, 2)
    assert top_layers(scores([None, 0.1, 0.3, None]), 3) == (0, 1, 2)
    with pytest.raises(SelectionError, match=r"no layer has an importance \(constant\)"):
        top_layers(scores([None, None]), 1)


def test_a_selection_follows_the_importances_and_repeats():
    model, rows = tiny("bert"), texts()
    first = select_layers(model, rows, tokenizer(), ratio=0.5)
    second = select_layers(model, datasets.Dataset.from_list(rows), tokenizer(), top_n=2)
    assert first.importance == second.importance
    assert first.selected_layers == second.selected_layers == tuple(sorted(np.argsort(first.importance)[:1:-1]))
    assert first.mask == "".join("1" if i in first.selected_layers else "0" for i in range(4))
    assert (first.position, first.metric, first.num_samples, first.tower) == ("mean", "cka", 20, "encoder")
    assert first.data.fingerprint == second.data.fingerprint
    assert {"torch", "transformers", "peft", "layersift"} <= set(first.versions)


def test_instruction_data_are_read_at_the_response():
    selection = select_layers(tiny("llama"), problems(), tokenizer("decoder"))
    assert selection.position == "response-mean"
    assert selection.data.columns == {"prompt": "question", "response": "answer"}


def test_a_constant_position_is_reported_and_left_out():
    selection = select_layers(tiny("bert"), texts(), tokenizer(), position="first")
    assert selection.importance[0] is None
    assert selection.undefined == {0: "its input is constant over the sample"}
    assert 0 not in selection.ranking
    assert 0 not in selection.selected_layers


def test_the_sample_is_drawn_by_the_seed():
    rows = texts(60)
    a, b, c = (select_layers(tiny("bert"), rows, tokenizer(), max_samples=16, seed=s) for s in (0, 0, 1))
    assert a.importance == b.importance != c.importance


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_of_a_data_loader_say_the_same_as_rows(side):
    model, tok, rows = tiny("llama"), tokenizer("decoder"), texts()
    tok.padding_side = side

    def batch(samples):
        return tok([s["text"] for s in samples], padding=True, return_tensors="pt")

    from_batches = select_layers(model, DataLoader(rows, batch_size=7, collate_fn=batch), tok, position="mean")
    from_rows = select_layers(model, rows, tok, position="mean", task="text")
    np.testing.assert_allclose(from_batches.importance, from_rows.importance, rtol=1e-4)
    assert from_batches.selected_layers == from_rows.selected_layers


def test_token_labels_of_batches_mark_the_response():
    model, tok = tiny("llama"), tokenizer("decoder")
    ids = torch.randint(10, 90, (12, 9))
    labels = torch.where(torch.arange(9) > 5, ids, -100)
    selection = select_layers(model, [{"input_ids": ids, "labels": labels}], tok)
    assert selection.position == "response-mean"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (texts(7), "7 samples; at least 8 are needed"),
        ([], "no rows"),
        ([{**row, "label": 1} for row in texts()], "one class only"),
        (iter([[1, 2]]), "that are dicts with input_ids, as a collator gives them; got list"),
        (iter([]), "yields no batches"),
        (datasets.DatasetDict(train=datasets.Dataset.from_list(texts())), r"several splits \(train\); give one"),
        (iter([{"input_ids": torch.arange(12).view(3, 4)}]), "3 samples; at least 8"),
    ],
)
def test_data_that_cannot_be_used(data, message):
    with pytest.raises(DataError, match=message):
        select_layers(tiny("bert"), data, tokenizer())
    with pytest.raises(DataError, match="need a tokenizer"):
        select_layers(tiny("bert"), texts())


def test_a_budget_takes_as_many_layers_of_the_ranking_as_fit():
    model, tok = tiny("llama"), tokenizer("decoder")
    rows = problems()
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    plain = select_layers(model, rows, tok, top_n=4)
    layer = 4 * (32 + 32) + 4 * (32 + 16)  # query and value of one layer
    for budget, count in ((layer, 1), (layer + 1, 1), (3 * layer - 1, 2), ("1.5k", 3), (10**9, 4)):
        found = select_layers(model, rows, tok, budget_params=budget, adapter=lora)
        assert found.selected_layers == tuple(sorted(plain.ranking[:count])), budget
        trained = [p.numel() for p in found.attach(tiny("llama"), lora).parameters() if p.requires_grad]
        assert sum(trained) == count * layer
    assert found.rule == "top 4 of 4 within 1,000,000,000 trained parameters"
    with pytest.raises(SelectionError, match=f"less than one layer costs: .* would train {layer:,} parameters"):
        select_layers(model, rows, tok, budget_params=layer - 1, adapter=lora)
    with pytest.raises(SelectionError, match="budget_params needs adapter"):
        select_layers(model, rows, tok, budget_params="2M")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 200), st.randoms())
def test_within_budget_is_the_longest_prefix(costs, budget, random):
    ranking = list(range(len(costs)))
    random.shuffle(ranking)
    spent = list(itertools.accumulate(costs[i] for i in ranking))
    wanted = sum(s <= budget for s in spent)
    if wanted == 0:
        with pytest.raises(SelectionError):
            count_within_budget(lambda n: tuple(ranking[:n]), costs, budget)
    else:
        assert count_within_budget(lambda n: tuple(ranking[:n]), costs, budget) == wanted


def published(model, tok, rows, encoder):
    """The published scripts' rule from `output_hidden_states`, written down once more without any of our code."""
    kept = []
    for row in rows:
        if encoder:
            ids = tok(row["text"])["input_ids"]
        else:
            text = (
                "Below is an instruction that describes a task. Write a response that appropriately completes the "
                f"request.\n\n### Instruction:\n{row['question']}\n\n### Response:{row['answer']}\n"
            )
            ids = tok(text)["input_ids"]
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        kept.append([state[0, 0 if encoder else -1] for state in states])
    columns = [torch.stack(layer).double() for layer in zip(*kept, strict=True)]
    columns = [c - c.mean(0) for c in columns]
    values = []
    for x, y in itertools.pairwise(columns):
        scale = ((x.T @ x).norm() * (y.T @ y).norm()).clamp(min=1e-12)
        values.append(float((x.T @ y).norm() ** 2 / scale))
    order = sorted(range(len(values)), key=lambda i: values[i])
    half = len(values) // 2
    return values, sorted(order[1 : half + 1] if encoder else order[:half])


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma", "gpt-neox", "bert", "roberta", "deberta-v2"])
def test_compat_paper_is_the_published_rule(name):
    encoder = name in ("bert", "roberta", "deberta-v2")
    model, tok = tiny(name), tokenizer("encoder" if encoder else "decoder")
    rows = texts(24) if encoder else problems(24)
    selection = select_layers(model, rows, tok, compat="paper", max_samples=16)
    values, chosen = published(model, tok, rows[:16], encoder)
    np.testing.assert_allclose([1 - v for v in values], selection.importance, atol=1e-5)
    assert list(selection.selected_layers) == chosen
    assert selection.importance[0] == 1.0  # the artefact


def test_a_selection_file_reads_back_and_keeps_its_names(tmp_path):
    selection = select_layers(tiny("bert"), texts(), tokenizer(), position="first")
    selection.save(tmp_path / "s.json")
    values = json.loads((tmp_path / "s.json").read_text())
    assert Selection.load(tmp_path / "s.json") == selection
    assert values["schema_version"] == 2
    assert values["num_layers"] == 4
    assert values["importance"][0] is None
    assert len(values["top_dimension_share"]) == 4
    assert values["mask"] == selection.mask
    assert values["selected_layers"] == sorted(values["selected_layers"])
    assert sorted(values["ranking"]) == [1, 2, 3]
    assert layersift.Selection is Selection


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 0}, "schema version 0; this layersift reads versions 1 and 2"),
        ({"schema_version": None}, "not a selection file"),
        ({"mask": "1111"}, "mask '1111' and selected_layers .* disagree"),
        ({"selected_layers": [9]}, r"selected layers \[9\] are not ascending indices below 4"),
        ({"surprise": 1}, "unknown key 'surprise'"),
    ],
)
def test_foreign_and_edited_files(tmp_path, change, message):
    values = selection_of(tiny("bert"), [1, 2]).to_json() | change
    (tmp_path / "s.json").write_text(
        json.dumps({k: v for k, v in values.items() if k != "schema_version" or v is not None})
    )
    with pytest.raises(SelectionError, match=message):
        Selection.load(tmp_path / "s.json")


def test_files_that_are_no_json(tmp_path):
    with pytest.raises(SelectionError, match="no such file; expected a selection file"):
        Selection.load(tmp_path / "none.json")
    (tmp_path / "s.json").write_text("mask: 0011")
    with pytest.raises(SelectionError, match="not a selection file"):
        Selection.load(tmp_path / "s.json")
    (tmp_path / "s.json").write_text("[1]")
    with pytest.raises(SelectionError, match="it holds a JSON list"):
        Selection.load(tmp_path / "s.json")


def test_a_model_is_left_as_it_was():
    model = tiny("bert").train()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    select_layers(model, texts(), tokenizer())
    assert model.training
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    blocks = find_stacks(model)[0].blocks(model)
    assert not any(b._forward_hooks or b._forward_pre_hooks for b in blocks)
