"""Intervals and probabilities from halves of the sample, and scoring that stops when it is sure."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from contexts import examples, measured
from layersift import select_layers
from layersift.errors import SelectionError
from layersift.models.stacks import find_stack
from layersift.records.selection import Selection
from layersift.score.context import ScoringContext
from layersift.score.criterion import score_layers
from layersift.score.registry import CRITERIA, find_criterion
from layersift.score.stability import measure_stability, sample_sizes, until_stable
from tiny import tiny
from words import tokenizer


def test_the_interval_of_a_mean_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(size=(3, 400)) * np.array([[1.0], [2.0], [5.0]]) + 7
    found = measure_stability(CRITERIA["cosine"], measured(values), 1, draws=2000)
    for layer in range(3):
        half = 1.96 * values[layer].std(ddof=1) / 20
        mean = values[layer].mean()
        assert found.low[layer] == pytest.approx(mean - half, abs=0.12 * half)
        assert found.high[layer] == pytest.approx(mean + half, abs=0.12 * half)


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = 0
    for seed in range(150):
        values = np.random.default_rng(seed).exponential(size=(1, 60))
        found = measure_stability(CRITERIA["cosine"], measured(values), 1, draws=100, confidence=0.9)
        held += found.low[0] <= 1.0 <= found.high[0]
    assert 0.8 <= held / 150 <= 0.96


def test_membership_is_how_often_a_layer_is_in_the_top():
    noise = np.random.default_rng(1).normal(size=(4, 64))
    values = np.array([[5.0], [1.0], [1.0], [-5.0]]) + 0.5 * noise
    found = measure_stability(CRITERIA["cosine"], measured(values), 2, draws=400)
    assert found.membership[0] == 1.0
    assert found.membership[3] == 0.0
    assert sum(found.membership) == pytest.approx(2)
    assert not found.decided(0.95)
    values[1] += 3
    assert measure_stability(CRITERIA["cosine"], measured(values), 2).decided(0.95)


def test_halves_leave_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        measure_stability(CRITERIA["cosine"], measured(np.ones((2, 20)) + np.arange(20)), 1, draws=4)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_plain_rules_and_small_samples_have_no_interval():
    assert measure_stability(CRITERIA["last"], measured(np.zeros((2, 64))), 1) is None
    assert measure_stability(CRITERIA["cosine"], measured(np.ones((2, 15))), 1) is None


def test_the_ranking_is_looked_at_ever_more_rarely():
    assert sample_sizes(128) == [32, 48, 72, 108, 128]
    assert sample_sizes(32) == [32]


class Counting:
    """Counts the samples that pass through a model."""

    def __init__(self, model):
        self.rows = 0
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs):
        self.rows += len(kwargs["input_ids"])


@pytest.mark.parametrize("criterion", ["cka", "update-norm", "fisher"])
@pytest.mark.usefixtures("no_trial")
def test_scoring_stops_when_the_selection_is_decided_and_forwards_nothing_twice(criterion):
    model = tiny("bert")
    with torch.no_grad():  # one layer that changes far more than the others
        for layer in (0, 1, 3):
            block = model.bert.encoder.layer[layer]
            for weight in (block.attention.output.dense.weight, block.output.dense.weight):
                weight.mul_(0.001)
    counting = Counting(model)
    kind = "classification"
    whole = ScoringContext(model, find_stack(model), examples(kind, 200), kind)
    chosen = find_criterion(criterion)
    grown, sure, stop = until_stable(chosen, whole, 1 if criterion != "fisher" else 2)
    assert counting.rows == stop.samples == len(grown.examples)
    if criterion != "fisher":
        assert stop.decided
        assert stop.samples < 200
        assert sure.membership[2] == 1.0
    alone = dataclasses.replace(whole, examples=whole.examples[: stop.samples], activations=type(whole.activations)())
    assert score_layers(chosen, grown).importance == pytest.approx(score_layers(chosen, alone).importance, rel=1e-3)


def test_it_says_when_all_samples_were_not_enough():
    model = tiny("bert")
    kind = "classification"
    whole = ScoringContext(model, find_stack(model), examples(kind, 40), kind)
    coin = dataclasses.replace(
        CRITERIA["cosine"],
        score=lambda s: [float(s.representations().states[1][:, i].mean()) * 0 + hash_of(s, i) for i in range(4)],
    )
    _, _, stop = until_stable(coin, whole, 2)
    assert (stop.decided, stop.samples, stop.at_most, stop.looks) == (False, 40, 40, 2)
    with pytest.raises(SelectionError, match="last is not a mean over samples"):
        until_stable(CRITERIA["last"], whole, 2)
    with pytest.raises(SelectionError, match="at least 32 samples, got 20"):
        until_stable(CRITERIA["cka"], dataclasses.replace(whole, examples=whole.examples[:20]), 2)


def hash_of(context, layer):
    """A score that depends on which samples are looked at, and on nothing else."""
    rows = tuple(range(len(context.examples))) if context.samples is None else tuple(context.samples.tolist())
    return float(np.random.default_rng(abs(hash((rows, layer)))).normal())


def test_selections_carry_their_uncertainty_and_read_files_without_it(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join(f"w{i}" for i in rng.integers(0, 40, 6)), "label": i % 2} for i in range(60)]
    found = select_layers(tiny("bert"), rows, tokenizer(), top_n=2, until_stable=0.9)
    assert len(found.interval) == len(found.membership) == 4
    for value, (low, high) in zip(found.importance, found.interval, strict=True):
        assert low <= value <= high
    assert found.until_stable.samples == found.num_samples <= 60
    found.save(tmp_path / "s.json")
    assert Selection.load(tmp_path / "s.json") == found
    values = json.loads((tmp_path / "s.json").read_text())
    for name in ("interval", "membership", "confidence", "until_stable"):
        del values[name]
    (tmp_path / "old.json").write_text(json.dumps(values))
    assert Selection.load(tmp_path / "old.json").membership is None
    again = select_layers(tiny("bert"), rows, tokenizer(), top_n=2, until_stable=0.9)
    assert again.membership == found.membership


def test_the_command_line_shows_how_sure_it_is(call, bert_directory, tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join(f"w{i}" for i in rng.integers(0, 40, 6)), "label": i % 2} for i in range(60)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shown = call("select", bert_directory, "--data", "d.jsonl", "--until-stable", "0.9", cwd=tmp_path)
    assert shown.returncode == 0
    assert "95% interval" in shown.stdout
    assert "decided at 90% after" in shown.stdout
    refused = call("select", bert_directory, "--data", "d.jsonl", "--until-stable", "2", cwd=tmp_path)
    assert (refused.returncode, "until-stable 2.0 is out of range" in refused.stderr) == (2, True)


def test_intervals_of_a_large_sample_are_those_of_a_pool_and_hold_the_truth(monkeypatch):
    from layersift.score import stability as module

    monkeypatch.setattr(module, "POOL", 64)
    held, widths = 0, []
    for seed in range(100):
        values = np.random.default_rng(seed).normal(size=(1, 400))
        found = measure_stability(CRITERIA["cosine"], measured(values), 1, draws=100, confidence=0.9)
        held += found.low[0] <= 0.0 <= found.high[0]
        widths.append(found.high[0] - found.low[0])
        assert found.samples == 64
    assert 0.8 <= held / 100 <= 0.97
    assert np.mean(widths) == pytest.approx(2 * 1.645 / 20, rel=0.1)


def test_what_drifts_with_the_number_of_samples_has_no_interval_but_a_membership():
    model, kind = tiny("bert"), "classification"
    found = measure_stability(
        CRITERIA["procrustes"], ScoringContext(model, find_stack(model), examples(kind, 40), kind), 2
    )
    assert found.low == found.high == (None,) * 4
    assert sum(found.membership) == pytest.approx(2)


def test_the_certainty_of_a_threshold_is_that_of_the_layers_beyond_it():
    noise = np.random.default_rng(1).normal(size=(3, 64))
    values = np.array([[5.0], [4.0], [1.0]]) + 0.5 * noise
    top = measure_stability(CRITERIA["cosine"], measured(values), 1)
    beyond = measure_stability(CRITERIA["cosine"], measured(values), 1, threshold=values[1].mean())
    assert top.certainty[1] > 0.99  # surely not the first
    assert beyond.certainty[1] < 0.6  # but exactly at the threshold
    assert min(beyond.certainty[0], beyond.certainty[2]) > 0.99


def test_a_selection_that_is_not_decided_says_what_it_would_need():
    values = np.array([[0.15], [0.0]]) + np.random.default_rng(3).normal(size=(2, 40)) * 0.9
    found = measure_stability(CRITERIA["cosine"], measured(values), 1)
    assert not found.decided(0.95)
    needed = found.needed(0.95, 40)
    assert needed > 40
    # What it says: the distance stays, and spreads shrink with the root of the number of samples.
    reached = (values[0].mean() - values[1].mean()) / np.std(values[0] - values[1], ddof=1) * np.sqrt(40)
    assert needed == pytest.approx(40 * (1.645 / reached) ** 2, rel=0.35)
    assert dataclasses.replace(found, certainty=(0.5, 0.5)).needed(0.95, 40) is None
