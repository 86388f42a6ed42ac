"""Criteria of gradients in several processes: each reads its share of the samples, and all have the scores of one."""

from dataclasses import replace

import pytest
import torch

from contexts import examples
from layersift import processes
from layersift.errors import DataError
from layersift.models.stacks import find_stack
from layersift.score.context import ScoringContext
from layersift.score.registry import CRITERIA
from pair import run_pair
from tiny import tiny

SHARED = """
import json
import torch
from layersift import select_layers
from layersift.score.registry import CRITERIA
from tiny import tiny
from words import tokenizer

ROWS = {
    "bert": [{"text": f"w{i} w{i % 7} " + "w3 " * (i % 5), "label": i % 2} for i in range(41)],
    "llama": [{"prompt": f"w{i} w{i % 7}", "response": "w3 w5 " * (1 + i % 5) + f"w{i % 3}"} for i in range(41)],
}


def scores():
    found, seen = {}, []
    for name, rows in ROWS.items():
        model = tiny(name)
        model.register_forward_pre_hook(
            lambda m, a, k: seen.append(len(k["input_ids"])) if torch.is_grad_enabled() else None, with_kwargs=True
        )
        for criterion in (c for c in CRITERIA.values() if c.needs == "gradients"):
            chosen = select_layers(model, rows, tokenizer(), criterion=criterion.name)
            found[f"{name} {criterion.name}"] = [chosen.importance, chosen.membership]
        stopped = select_layers(model, rows, tokenizer(), criterion="fisher", until_stable=0.6)
        found[f"{name} until stable"] = [stopped.importance, [stopped.until_stable.samples]]
    return found, sum(seen)
"""
PAIR = f"""{SHARED}
from torch import distributed

distributed.init_process_group("gloo")
found, rows = scores()
print(json.dumps({{"rank": distributed.get_rank(), "rows": rows, "found": found}}), flush=True)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_score_by_gradients_as_one_does(tmp_path):
    alone = {}
    exec(SHARED, alone)
    wanted, rows = alone["scores"]()
    assert len(wanted) >= 2 * 7
    one, two = run_pair(PAIR, tmp_path)
    assert {one["rank"], two["rank"]} == {0, 1}
    assert one["found"] == two["found"]
    for name, (importance, membership) in wanted.items():
        found = one["found"][name]
        assert found[0] == pytest.approx(list(importance), rel=1e-4, abs=1e-9), name
        assert (found[1] is None) == (membership is None)
        if membership is not None:
            assert found[1] == pytest.approx(list(membership), abs=0.02), name
    assert one["rows"] + two["rows"] == rows, "each sample is read once"
    assert abs(one["rows"] - two["rows"]) <= len(wanted)


def test_the_sums_are_of_all_processes_and_what_one_lacks_adds_nothing(monkeypatch):
    others = {"b": torch.tensor([1.0, 2.0]), "c": torch.tensor([[3.0]])}
    added = iter(others.values())
    monkeypatch.setattr(processes, "several", lambda: True)
    shapes = {key: value.shape for key, value in others.items()}
    monkeypatch.setattr(processes, "from_all_processes", lambda mine: [mine, shapes])
    given = {"a": torch.tensor(5.0), "b": torch.tensor([10.0, 20.0])}
    theirs = iter([torch.tensor(0.0), *added])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.add_(next(theirs)))
    sums = processes.sum_over_processes(given)
    assert {key: value.tolist() for key, value in sums.items()} == {"a": 5.0, "b": [11.0, 22.0], "c": [[3.0]]}


def test_a_sample_without_a_label_is_refused_before_anything_is_shared(monkeypatch):
    """Also in a process whose own share holds labelled samples alone."""
    model = tiny("bert")
    first, *rest = examples("classification", 16)
    given = ScoringContext(model, find_stack(model), (replace(first, label=None), *rest), "classification")
    monkeypatch.setattr("layersift.score.gradients.own_share", lambda count: list(range(1, count, 2)))
    with pytest.raises(DataError, match="gradients need labels"):
        CRITERIA["fisher"].score(given)
