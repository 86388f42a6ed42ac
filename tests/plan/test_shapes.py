"""Calls on the meta device that are known already give the tensors that they gave when they ran."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layersift.adapt.targets import without_weights
from layersift.plan import meter
from layersift.plan.meter import run_on_meta
from tiny import tiny

aten = torch.ops.aten


def described(output):
    return [
        (tuple(t.shape), t.stride(), t.dtype, t.untyped_storage().nbytes(), t.storage_offset())
        if isinstance(t, torch.Tensor)
        else t
        for t in tree_leaves(output)
    ]


class Twice(TorchDispatchMode):
    """Runs each operation and asks for it as known, too."""

    def __init__(self):
        super().__init__()
        self.asked = self.known = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(one.alias_info is not None for one in (*func._schema.arguments, *func._schema.returns)):
            return run_on_meta(func, args, kwargs or {})  # it may be run once only
        before = len(meter._known)
        first = run_on_meta(func, args, kwargs or {})
        self.asked, self.known = self.asked + 1, self.known + (len(meter._known) == before)
        again, real = run_on_meta(func, args, kwargs or {}), func(*args, **(kwargs or {}))
        assert type(first) is type(again) is type(real)
        assert described(first) == described(again) == described(real), func
        return again


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "gpt2", "qwen3-moe"])
def test_a_training_step_asks_for_the_same_tensors_again(name, monkeypatch):
    monkeypatch.setattr(meter, "_known", {})  # whatever other tests have asked for
    model = without_weights(tiny(name)).train()
    ids = torch.zeros(2, 7, dtype=torch.long, device="meta")
    more = {"decoder_input_ids": ids} if name == "t5" else {}

    def step():
        try:
            output = model(input_ids=ids, **more)
            output[0].float().sum().backward()
        except (NotImplementedError, RuntimeError):  # a mixture of experts runs up to where values decide
            assert name == "qwen3-moe"

    with Twice() as twice:
        step()
        step()
    assert twice.known > twice.asked / 2 > 5


def test_what_changes_or_shares_memory_is_always_run(monkeypatch):
    monkeypatch.setattr(meter, "_known", {})
    x = torch.zeros(2, 3, device="meta")
    for _ in range(2):
        assert run_on_meta(aten.add_.Tensor, (x, x), {}) is x
        assert run_on_meta(aten.t.default, (x,), {}).untyped_storage()._cdata == x.untyped_storage()._cdata
    assert meter._known == {}


def test_equal_numbers_of_other_types_and_other_devices_are_other_calls(monkeypatch):
    monkeypatch.setattr(meter, "_known", {})
    x = torch.zeros(2, dtype=torch.int32, device="meta")
    for scalar, dtype in ((1, torch.int32), (1.0, torch.float32), (True, torch.int32)):
        for _ in range(2):
            assert run_on_meta(aten.mul.Scalar, (x, scalar), {}).dtype == dtype
    real = torch.ones(2)
    assert torch.equal(run_on_meta(aten.mul.Tensor, (real, real), {}), real)
    assert torch.equal(run_on_meta(aten.add.Tensor, (real, real), {}), 2 * real)
