"""How long a step takes, by a clock that the loss turns."""

from types import SimpleNamespace

import pytest
import torch

from layersift.step import counters
from prefixed import adapted, batch


def timed(monkeypatch, seconds, sizes, most):
    """What is measured where the steps take so long, and the sizes of the batches that were stepped on."""
    model, clock, seen = adapted("llama", (1, 3)), [0.0], []
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    monkeypatch.setattr(counters, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    takes = iter(seconds)

    def loss_of(model, inputs):
        clock[0] += next(takes)
        seen.append(len(inputs["input_ids"]))
        return model(**inputs).loss

    batches = [{name: value.repeat(size, 1) for name, value in batch(0).items()} for size in sizes]
    of_one = len(batch(0)["input_ids"])
    measured = counters.seconds_a_step(model, batches, loss_of, most)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(p.grad is not None for p in model.parameters() if p.requires_grad)
    return measured, [count // of_one for count in seen]


def test_a_step_takes_the_median_of_those_on_the_largest_batch(monkeypatch):
    (place, seconds), sizes = timed(monkeypatch, [50.0, 1.0, 4.0, 6.0, 20.0], [1, 2, 4], 1000.0)
    assert (place, seconds) == (2, pytest.approx(6.0))
    assert sizes == [1, 1, 4, 4, 4]


@pytest.mark.parametrize(
    ("most", "stepped", "place"),
    [(0.5, [1, 1], 0), (2.5, [1, 1, 1], 0), (3.0, [1, 1, 2], 1), (7.0, [1, 1, 4], 2), (9.0, [1, 1, 4, 4], 2)],
)
def test_no_step_is_begun_that_would_end_too_late(monkeypatch, most, stepped, place):
    seconds = [50.0, 1.0, [1.0, 2.0, 4.0][place], 4.0, 4.0]
    measured, sizes = timed(monkeypatch, seconds, [1, 2, 4], most)
    assert measured[0] == place
    assert sizes == stepped


def test_what_is_slow_here_is_said_to_be_an_upper_bound(monkeypatch, bert_directory, call, tmp_path):
    rows = "".join(f'{{"text": "word {n} the cat", "label": {n % 2}}}\n' for n in range(40))
    (tmp_path / "rows.jsonl").write_text(rows)
    monkeypatch.setattr("layersift.advise.candidates.seconds_a_step", lambda adapted, batches, own: (0, 5.0))
    told = call("advise", bert_directory, "--data", "rows.jsonl", cwd=tmp_path)
    assert told.returncode == 0
    assert "times are upper bounds: steps of 1 rows were timed, as 16 are slow here" in told.stderr + told.stdout
