"""Several processes read what one reads; a batch that does not fit is halved."""

import pytest
import torch

from contexts import examples
from layersift.errors import ModelError
from layersift.models.stacks import find_stack
from layersift.represent import read
from layersift.represent import read as read_module
from layersift.represent.positions import POSITIONS
from layersift.represent.read import out_of_memory
from pair import run_pair
from tiny import read_at, tiny

SCRIPT = """
import json
import torch
from accelerate import PartialState
from layersift import select_layers
from tiny import tiny
from words import tokenizer

state = PartialState(cpu=True)
assert state.num_processes == 2
rows = [{"text": f"w{i} w{i % 7} " + "w3 " * (i % 5), "label": i % 2} for i in range(41)]
model = tiny("bert")
seen = []
model.register_forward_pre_hook(lambda m, a, k: seen.append(len(k["input_ids"])), with_kwargs=True)
found = {c: select_layers(model, rows, tokenizer(), criterion=c).importance for c in ("cka", "cosine")}
print(json.dumps({"rank": state.process_index, "rows": sum(seen), "importance": found}), flush=True)
"""


@pytest.mark.slow
def test_two_processes_over_gloo_equal_one(tmp_path):
    from layersift import select_layers
    from words import tokenizer

    lines = run_pair(SCRIPT, tmp_path)
    assert {line["rank"] for line in lines} == {0, 1}
    tried = 2 * 5  # at two lengths, whether samples of a batch change one another
    # Each its share, for two criteria.
    assert sorted(line["rows"] for line in lines) == [2 * (20 + tried), 2 * (21 + tried)]
    rows = [{"text": f"w{i} w{i % 7} " + "w3 " * (i % 5), "label": i % 2} for i in range(41)]
    for criterion in ("cka", "cosine"):
        alone = select_layers(tiny("bert"), rows, tokenizer(), criterion=criterion).importance
        for line in lines:
            assert line["importance"][criterion] == pytest.approx(alone, abs=1e-5)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    model = tiny("bert")
    stack, some = find_stack(model), examples("classification", 24)
    whole = read_at(model, stack, some, POSITIONS["mean"])
    sizes = []
    original = read_module._forward

    def small(through, members, *rest):
        sizes.append(len(members))
        if len(members) > 5:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return original(through, members, *rest)

    monkeypatch.setattr(read_module, "_forward", small)
    halved = read_at(model, stack, some, POSITIONS["mean"])
    assert sizes[:3] == [24, 12, 6]
    assert max(sizes[3:]) <= 6
    for a, b in zip(whole.states, halved.states, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_other_errors_and_single_samples_are_not_swallowed(monkeypatch):
    model = tiny("bert")
    stack, some = find_stack(model), examples("classification", 8)

    def broken(*arguments, **named):
        raise RuntimeError("shapes do not fit")

    def never(*arguments, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for fault, said in ((broken, "shapes do not fit"), (never, "out of memory")):
        with monkeypatch.context() as patch:
            patch.setattr(stack.blocks(model)[1], "forward", fault)
            with pytest.raises(ModelError, match=said):
                read_at(model, stack, some, POSITIONS["mean"])
    assert out_of_memory(torch.OutOfMemoryError())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_process_without_samples_has_nothing_to_put_in(order, monkeypatch):
    """A look at one more sample than before: one process reads it, the others nothing."""
    states = torch.arange(12.0).reshape(3, 4)
    shares = [
        ([0, 2], [states[[0, 2]]], {"norm": torch.ones(2, 2)}),
        ([], [], {}),
        ([1], [states[[1]]], {"norm": torch.zeros(2, 1)}),
    ]
    monkeypatch.setattr(read, "from_all_processes", lambda own: [shares[i] for i in order])
    kept = read.Kept(3)
    kept.merge([])
    assert torch.equal(kept.states[0], states)
    assert kept.between["norm"].tolist() == [[1.0, 0.0, 1.0]] * 2
