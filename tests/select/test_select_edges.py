"""Choices at the edge of what can be afforded, the published scripts' samples, and what a selection says of it."""

import dataclasses
import inspect
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from layersift.config.recipe import Columns
from layersift.config.select import SelectSettings
from layersift.data.encode import Encoder
from layersift.data.examples import Example
from layersift.data.table import Table
from layersift.errors import DataError, LayersiftError, SelectionError
from layersift.models.load import LoadedModel
from layersift.models.stacks import BlockStack
from layersift.records.selection import LayerScores
from layersift.score.registry import find_criterion
from layersift.select.afford import _exactly, _Prices, choose_affordable
from layersift.select.layers import choose_layers
from layersift.select.published import published_examples
from layersift.select.sample import require_fitting, sample_table, scoring_contexts
from layersift.select_in_memory import select_layers
from tiny import tiny
from words import tokenizer


def scores(importance, direction="high"):
    undefined = {i: "constant" for i, v in enumerate(importance) if v is None}
    return LayerScores("x", tuple(importance), undefined, (None,) * len(importance), 8, 0.0, direction)


@pytest.mark.parametrize("seed", range(40))
def test_among_dear_adapters_nothing_affordable_is_more_important(seed):
    """Where one more layer costs as much as reaching many blocks further down does, lowest layers are often alone."""
    rng = np.random.default_rng(seed)
    layers, frozen, graph, adapter = 7, *(int(v) for v in rng.integers(1, 40, 3))
    importance = rng.permutation(layers).astype(float) + rng.random(layers)

    def cost(chosen):
        return layers * frozen + (layers - min(chosen)) * graph + len(chosen) * adapter * 5

    subsets = [s for n in range(1, layers + 1) for s in itertools.combinations(range(layers), n)]
    value = importance - importance.min()
    for dearest in sorted({cost(s) for s in subsets}):
        share = (dearest + 0.5) / cost(tuple(range(layers)))
        if share > 1:
            continue
        best = max(value[list(s)].sum() for s in subsets if cost(s) <= dearest + 0.5)
        found = choose_affordable(scores(importance), cost, share)
        assert cost(found) <= dearest + 0.5
        assert value[list(found)].sum() == pytest.approx(best)


def test_what_the_estimate_made_too_dear_loses_its_least_important_layers_one_by_one():
    value = {0: 3.0, 2: 0.5, 3: 2.0, 5: 1.0}

    def cost(layers):
        return len(layers) ** 2

    dear = _Prices(36.0, (100.0,) * 6, (100.0,) * 6)  # by the estimates nothing else is affordable
    kept = {budget: _exactly((0, 2, 3, 5), cost, dear, budget, value) for budget in (16, 15, 9, 8, 3, 1, 0.5)}
    assert kept == {16: (0, 2, 3, 5), 15: (0, 3, 5), 9: (0, 3, 5), 8: (0, 3), 3: (0,), 1: (0,), 0.5: ()}


ENDS = 9  # of text


class Reads:
    """An encoder of images with questions: row i is i + 3 tokens, the last one the end of text but for the first."""

    tokenizer = SimpleNamespace(eos_token_id=ENDS)

    def encode(self, table, index):
        length = table.rows[index]["tokens"]
        ids = (*range(20, 20 + length - 1), ENDS if index else 15)
        response = (False,) * (length - 1) + (True,) if length > 3 or not index else None
        types = {"token_type_ids": tuple(range(length))}
        return Example(ids, (False,) * length, response, types=types, image=dict), False


def questions(*lengths):
    rows = tuple({"tokens": n} for n in lengths)
    return Table(rows, "here", "instruction", Columns(prompt="q", response="a", image="i"))


def test_published_image_questions_end_in_their_answers_last_token_and_count_all_of_them():
    found = published_examples(questions(3, 5, 4, 6), Reads(), 3)
    assert [e.input_ids for e in found] == [(20, 21, 15), (20, 21, 22, 23), (20, 21, 22)]  # the end of text is masked
    for example in found:
        assert example.content == (True,) * len(example)
        assert example.response is None
        assert example.types == {"token_type_ids": tuple(range(len(example)))}
        assert example.image is dict
    assert len(published_examples(questions(3, 5, 4, 6), Reads(), 9)) == 4
    with pytest.raises(DataError, match=r"row 2.*an image with a question and an answer"):
        published_examples(questions(3, 3), Reads(), 9)


@pytest.mark.parametrize("compat", [None, "paper"])
def test_a_sample_is_of_its_tables_kind_whoever_tokenises_it(compat):
    rows = tuple({"question": f"w{i}", "answer": f"w{i % 7}"} for i in range(12))
    table = Table(rows, "here", "instruction", Columns(prompt="question", response="answer"))
    sample = sample_table(table, Encoder(tokenizer("decoder"), "instruction"), SelectSettings(compat=compat))
    assert sample.kind == "instruction"
    assert sample.data.rows == 12
    assert len(sample.examples) == 12


def test_every_stack_is_scored_under_the_settings_own_seed_and_steps():
    stack = BlockStack("b", "encoder", 5, ())
    table = Table(tuple({"text": f"w{i}"} for i in range(9)), "here", "text", Columns(text="text"))
    settings = SelectSettings(seed=7, probe_steps=11)
    sample = sample_table(table, Encoder(tokenizer("encoder"), "text"), settings)
    loaded = LoadedModel(None, tokenizer("encoder"), None, "", None)
    for count, wanted in ((None, 2), (3, 3), (9, 5)):
        (found,) = scoring_contexts(loaded, stack, sample, settings, count=count)
        assert (found.seed, found.probe_steps, found.count, found.pad_id) == (7, 11, wanted, 0)
        assert found.examples == sample.examples
        assert not found.post_norm_last


def chosen(importance, tower="decoder", count=2, step_cost=None, **settings):
    stack = BlockStack("b", tower, len(importance), ("Block",) * len(importance))
    return choose_layers(scores(importance), SelectSettings(**settings), stack, count, (), step_cost)


def test_a_selection_says_how_its_ranking_became_layers():
    assert chosen([1.0, 4.0, 3.0, 2.0]).rule == "top 2 of 4"
    assert chosen([1.0, None, None, None], count=3).rule == (
        "top 3 of 4, 2 of them without an importance, lowest first"
    )
    assert chosen([1.0, None, None, None], count=3).layers == (0, 1, 2)
    assert chosen([1.0, 4.0, 3.0, 2.0], compat="paper").rule == "top 2 of 4"
    dropped = chosen([1.0, 4.0, 3.0, 2.0], "encoder", compat="paper")
    assert (dropped.layers, dropped.rule) == ((2, 3), "top 2 of 4, the first in the ranking left out")
    beyond = chosen([1.0, 4.0, 3.0, 2.0], count=None, threshold=1.5)
    assert (beyond.layers, beyond.rule) == ((1, 2, 3), "top 3 of 4, those that score beyond 1.5")


def test_an_objective_is_counted_in_what_it_names():
    """In memory all layers are alike, in time the lowest one decides."""
    costs = {"time": lambda layers: 10 * (4 - min(layers)) + len(layers), "memory": len}
    for what, wanted in (("time", (2, 3)), ("memory", (0, 3))):
        found = chosen([4.0, 1.0, 2.0, 3.0], count=None, objective=f"{what}=0.5", step_cost=costs.__getitem__)
        assert found.layers == wanted
        assert found.rule == f"top 2 of 4, the most important within 0.5 of the {what} of all"


@pytest.mark.parametrize("limit", [{"threshold": 0.5}, {"budget_params": 99}, {"objective": "time=0.5"}])
@pytest.mark.parametrize("name", ["pilot", "bottom:pilot"])
def test_what_tries_subsets_of_one_size_is_given_one(name, limit):
    stack, rule = BlockStack("b", "decoder", 4, ()), find_criterion(name)
    with pytest.raises(SelectionError, match="a number of layers"):
        require_fitting(rule, SelectSettings(**limit), stack)
    require_fitting(find_criterion("bottom:cka"), SelectSettings(**limit), stack)
    for fixed in ({}, {"top_n": 2}, {"ratio": 0.5}):
        require_fitting(rule, SelectSettings(**fixed), stack)


def test_a_selection_names_the_model_and_its_revision():
    rows = [{"text": f"w{i} w{i % 7}"} for i in range(12)]
    model = tiny("bert")
    assert select_layers(model, rows, tokenizer("encoder")).model == "BertForSequenceClassification"
    assert select_layers(model, rows, tokenizer("encoder")).model_revision == "unknown"
    model.config._name_or_path, model.config._commit_hash = "some/model", "abc123"
    found = select_layers(model, rows, tokenizer("encoder"))
    assert (found.model, found.model_revision) == ("some/model", "abc123")
    with pytest.raises(LayersiftError, match=r"unknown setting 'ration'; did you mean 'ratio'\?$"):
        select_layers(model, rows, tokenizer("encoder"), ration=0.5)
    with pytest.raises(LayersiftError, match="unknown setting 'zzz'; known: ratio, top_n,"):
        select_layers(model, rows, tokenizer("encoder"), zzz=0.5)


def test_the_signature_names_every_setting_with_its_type_and_what_comes_out():
    shown = inspect.signature(select_layers)
    assert shown.return_annotation == "Selection"
    settings = {f.name: f.default for f in dataclasses.fields(SelectSettings)}
    assert settings.keys() <= shown.parameters.keys()
    for name, default in settings.items():
        if name != "criterion":  # which is a function, too
            assert shown.parameters[name].default == default
            assert shown.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    types = {name: shown.parameters[name].annotation for name in ("max_samples", "ratio", "budget_params")}
    assert types == {"max_samples": "int", "ratio": "float | NoneType", "budget_params": "str | int | NoneType"}
