"""How far a planned memory may be off, by what was measured."""

import json
from pathlib import Path

import pytest

from layersift.plan.memory import MARGIN, TAKEN, Memory, in_one_unit, tell_bytes

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "plan_accuracy.json"


def test_low_and_high_enclose_every_step_that_was_measured():
    cases = [case["memory"] for case in json.loads(MEASURED.read_text())["cases"]]
    taken = [case["measured"] / case["planned"] for case in cases]
    assert pytest.approx((min(taken), max(taken)), abs=0.005) == TAKEN
    assert max(taken) < MARGIN
    for case in cases:
        memory = Memory(0, 0, 0, 0, case["planned"])
        assert 0.99 * memory.low <= case["measured"] <= memory.high


def test_sizes_are_told_in_one_unit():
    memory = Memory(
        base=13_500_000_000, adapters=160_000_000, gradients=160_000_000, optimizer=0, activations=2 * 10**9
    )
    told = in_one_unit(memory.components())
    assert told[:3] == ["base 14 GB", "adapters 0.16", "gradients 0.16"]
    assert told[-1] == "margin 1.6"
    assert tell_bytes(999_000_000) == "999 MB"
