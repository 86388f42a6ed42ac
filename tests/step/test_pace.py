"""How long a step takes, by a clock that the loss turns."""

from types import SimpleNamespace

import pytest
import torch

from layersift.step import pace
from prefixed import adapted, batch


def test_a_step_takes_the_mean_of_those_behind_the_first_and_changes_no_weight(monkeypatch):
    model, clock, seen = adapted("llama", (1, 3)), [0.0], []
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    takes = iter([100.0, 1.0, 2.0, 6.0])

    def loss_of(model, inputs):
        clock[0] += next(takes)
        seen.append(inputs["input_ids"])
        return model(**inputs).loss

    assert pace.seconds_a_step(model, [batch(0), batch(1)], loss_of) == pytest.approx(3.0)
    assert [torch.equal(ids, batch(step % 2)["input_ids"]) for step, ids in enumerate(seen)] == [True] * 4
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(p.grad is not None for p in model.parameters() if p.requires_grad)
