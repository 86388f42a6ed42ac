"""Pilot runs: candidates that do not see each other, halving that keeps the better half, and who is proposed."""

import dataclasses

import numpy as np
import pytest
import torch

from layersift.data.examples import Example
from layersift.errors import SelectionError
from layersift.models.stacks import find_stack
from layersift.score.context import ScoringContext
from layersift.score.criteria import pilot as pilot_module
from layersift.score.criteria.pilot import PILOT, candidates
from layersift.score.criterion import score_layers
from layersift.score.short_training import with_adapters
from tiny import tiny


def sentences(count=24, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        ids = tuple(int(t) for t in rng.integers(5, 100, int(rng.integers(4, 9))))
        made.append(Example(ids, (True,) * len(ids), label=i % 2))
    return tuple(made)


def context(**settings):
    model = tiny("bert")
    return ScoringContext(model, find_stack(model), sentences(), "classification", **{"probe_steps": 200, **settings})


def losses_of(order, steps=4):
    """Loss of each turn of candidates that are trained in an order, on one model; and their weights at the end."""
    given = context()
    training, held_back = list(given.examples[6:]), given.examples[:6]
    found = {}
    with with_adapters(given) as model:
        with torch.no_grad():  # B = 0 would let others' untrained adapters do nothing whatever they hold
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
        runs = {layers: pilot_module._Run(given, model, layers) for layers in dict.fromkeys(order)}
        for turn, layers in enumerate(order):
            seed = sum(done == layers for done in order[:turn])
            found.setdefault(layers, []).append(runs[layers].advance(training, held_back, steps, seed))
        states = {layers: {name: v.clone() for name, v in run.state.items()} for layers, run in runs.items()}
        assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n or "classifier" in n)
    return found, states


def test_what_one_candidate_learns_no_other_has():
    first, second = (0, 1), (1, 3)
    alone, states = {}, {}
    for layers in (first, second):
        losses, state = losses_of([layers, layers])
        alone |= losses
        states |= state
    assert alone[first] != alone[second]
    for order in ([first, second, first, second], [second, second, first, first], [first, second, second, first]):
        together, found = losses_of(order)
        assert together == alone
        for layers in (first, second):
            assert all(torch.equal(found[layers][name], value) for name, value in states[layers].items())


def test_a_candidate_trains_its_own_layers_and_the_head_and_goes_on_from_where_it_stood():
    given = context()
    training, held_back = list(given.examples[6:]), given.examples[:6]
    with with_adapters(given) as model:
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        run = pilot_module._Run(given, model, (1, 3))
        losses = [run.advance(training, held_back, 6, turn) for turn in range(3)]
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(".layer.1." in n or ".layer.3." in n or "classifier" in n for n in changed)
    assert any("classifier" in n for n in changed)
    assert any(".layer.1." in n for n in changed)
    assert any(".layer.3." in n for n in changed)
    assert len(set(losses)) == 3


def test_a_round_begins_with_what_the_one_before_it_ended_with():
    given = context()
    training, held_back = list(given.examples[6:]), given.examples[:6]
    with with_adapters(given) as model:
        run, other = (pilot_module._Run(given, model, layers) for layers in ((1, 3), (0, 1)))
        fresh, learned = (run.advance(training, held_back, steps, 0) for steps in (0, 6))
        assert other.advance(training, held_back, 0, 0) == fresh  # without adapters that have learned, all are alike
        other.advance(training, held_back, 6, 0)
        assert run.advance(training, held_back, 0, 1) == learned != fresh


def test_nothing_trains_on_what_is_held_back():
    given = context(count=1, probe_steps=40)
    trained, judged = set(), set()

    def look(module, args, kwargs):
        place = trained if torch.is_grad_enabled() else judged
        place |= {tuple(t for t in row if t) for row in kwargs["input_ids"].tolist()}

    given.model.bert.embeddings.register_forward_pre_hook(look, with_kwargs=True)
    score_layers(PILOT, given)
    held_back = {e.input_ids for e in given.examples[::4]}
    assert judged == held_back
    assert trained == {e.input_ids for e in given.examples} - held_back


def test_of_an_odd_number_the_smaller_half_goes_on(monkeypatch):
    fake = Fake(monkeypatch, lambda layers: float(sum(layers)))
    monkeypatch.setattr(pilot_module, "candidates", lambda given: [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)])
    assert score_layers(PILOT, context(count=2)).importance == (4.0, 4.0, 3.0, 2.0)
    assert [turn[0] for turn in fake.turns[5:]] == [(0, 1), (0, 2)]


def test_the_loss_of_what_is_held_back_is_the_mean_over_all_of_it():
    """Seventeen samples are batches of eight, eight and one, and the last one weighs no more than any other."""
    given = context()
    held_back = given.examples[:17]
    with with_adapters(given) as model:
        found = pilot_module._Run(given, model, (0,)).advance(list(given.examples[17:]), held_back, 0, 0)
    with torch.no_grad():
        chances = [
            torch.log_softmax(given.model(torch.tensor([e.input_ids])).logits[0], -1)[e.label] for e in held_back
        ]
    assert found == pytest.approx(-float(torch.stack(chances).mean()), rel=1e-5)


class Fake:
    """In the place of a training: a loss by the layers, and a note of what was asked for."""

    def __init__(self, monkeypatch, loss_of):
        self.turns = turns = []

        class Run:
            def __init__(self, context, model, layers):
                self.layers = layers

            def advance(self, training, held_back, steps, seed):
                turns.append((self.layers, len(training), len(held_back), steps, seed))
                return loss_of(self.layers)

        monkeypatch.setattr(pilot_module, "_Run", Run)


def six_layers(**settings):
    given = context(**settings)
    return dataclasses.replace(given, stack=dataclasses.replace(given.stack, num_layers=6, path="bert.encoder.layer"))


def test_the_lower_the_loss_the_longer_a_candidate_stays(monkeypatch):
    given = context(count=1, seed=5, probe_steps=30)
    order = {2: 0.1, 0: 0.2, 3: 0.3, 1: 0.4}
    fake = Fake(monkeypatch, lambda layers: order[layers[0]])
    found = score_layers(PILOT, given).importance
    assert found == (2.0, 0.0, 3.0, 1.0)  # places, from the worst
    first, second = fake.turns[:4], fake.turns[4:]
    assert {turn[0] for turn in first} == {(0,), (1,), (2,), (3,)}
    assert [turn[0] for turn in second] == [(2,), (0,)]
    # 24 samples: every fourth is held back. Half of 30 steps a round, shared evenly, and another order each round.
    assert {turn[1:] for turn in first} == {(18, 6, 3, 5)}
    assert {turn[1:] for turn in second} == {(18, 6, 7, 6)}


def test_a_candidate_that_is_better_late_is_judged_by_its_last_loss(monkeypatch):
    given = context(count=1)
    asked = []

    def loss(layers):
        asked.append(layers)
        return {3: (0.2, 0.5), 0: (0.3, 0.4), 1: (1.0,), 2: (2.0,)}[layers[0]][asked.count(layers) - 1]

    Fake(monkeypatch, loss)
    assert score_layers(PILOT, given).importance == (3.0, 1.0, 0.0, 2.0)


def test_what_is_not_a_number_is_worse_than_any_number(monkeypatch):
    Fake(monkeypatch, lambda layers: {0: float("nan"), 1: 5.0, 2: float("-inf"), 3: 1e30}[layers[0]])
    found = score_layers(PILOT, context(count=1)).importance
    assert found[1] == 3.0
    assert found[3] == 2.0


@pytest.mark.parametrize(("steps", "enough"), [(7, False), (8, True)])
def test_every_candidate_of_every_round_has_a_step(steps, enough, monkeypatch):
    given = context(count=1, probe_steps=steps)  # four candidates, two rounds
    fake = Fake(monkeypatch, lambda layers: float(layers[0]))
    if not enough:
        with pytest.raises(SelectionError, match="7 steps are too few for 4 candidates in 2 rounds; at least 8"):
            score_layers(PILOT, given)
        return
    assert score_layers(PILOT, given).top(1) == (0,)
    assert sum(turn[3] for turn in fake.turns) <= 8
    assert min(turn[3] for turn in fake.turns) == 1


def test_plain_rules_propose_and_chance_fills_up_to_eight():
    given = six_layers(count=3)
    found = candidates(given)
    assert found[:5] == [(3, 4, 5), (0, 1, 2), (2, 3, 4), (1, 3, 5), (0, 1, 5)]
    assert len(found) == len(set(found)) == 8
    assert all(len(layers) == 3 and sorted(set(layers)) == list(layers) for layers in found)
    assert candidates(given) == found
    drawn = {tuple(candidates(dataclasses.replace(given, seed=seed))[5:]) for seed in range(6)}
    assert len(drawn) > 3


def test_a_layer_in_no_candidate_has_no_score(monkeypatch):
    Fake(monkeypatch, lambda layers: float(layers[0]))
    monkeypatch.setattr(pilot_module, "candidates", lambda given: [(0,), (1,), (3,)])
    found = score_layers(PILOT, context(count=1))
    assert found.undefined == {2: "in none of the candidates"}
    assert found.importance == (2.0, 1.0, None, 0.0)


def test_a_layer_has_the_place_of_the_best_candidate_that_holds_it(monkeypatch):
    Fake(monkeypatch, lambda layers: {(0, 1): 0.3, (1, 2): 0.1, (0, 3): 0.2, (0, 2): 0.4}[layers])
    monkeypatch.setattr(pilot_module, "candidates", lambda given: [(0, 1), (1, 2), (0, 3), (0, 2)])
    found = score_layers(PILOT, context(count=2))
    assert found.importance == (2.0, 3.0, 3.0, 2.0)
    assert found.top(2) == (1, 2)
