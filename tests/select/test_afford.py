"""The most important layers within a share of the cost of all, against trying every subset."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from peft import LoraConfig

from layersift import select_layers
from layersift.config.quantities import Objective, parse_objective
from layersift.errors import SelectionError
from layersift.models.stacks import find_stack
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from layersift.records.selection import LayerScores
from layersift.select.afford import choose_affordable
from tiny import tiny
from words import tokenizer


def scores(importance, direction="high"):
    undefined = {i: "constant" for i, v in enumerate(importance) if v is None}
    return LayerScores("x", tuple(importance), undefined, (None,) * len(importance), 8, 0.0, direction)


def cost(layers, count=6, frozen=10, graph=20, adapter=3):
    """Forward everywhere, backward down to the lowest layer, something for each adapter."""
    return count * frozen + (count - min(layers)) * graph + len(layers) * adapter


@given(
    importance=st.lists(st.floats(0, 1), min_size=6, max_size=6, unique=True),
    share=st.floats(0.5, 1.0),
    direction=st.sampled_from(["high", "low"]),
)
def test_nothing_affordable_is_more_important(importance, share, direction):
    budget = share * cost(tuple(range(6))) * (1 + 1e-9)  # as exactly as floats can say it
    sign = 1 if direction == "high" else -1
    value = sign * np.array(importance) - min(sign * np.array(importance))
    subsets = [s for n in range(1, 7) for s in itertools.combinations(range(6), n) if cost(s) <= budget]
    best = max(value[list(s)].sum() for s in subsets)
    found = choose_affordable(scores(importance, direction), cost, share)
    assert cost(found) <= budget
    assert value[list(found)].sum() == pytest.approx(best)


def test_stacks_of_different_blocks_and_layers_without_a_score():
    def uneven(layers):
        return 10 + 50 * (0 in layers) + sum(5 + i for i in layers)

    found = choose_affordable(scores([9.0, 1.0, None, 3.0]), uneven, 0.5)
    assert 0 not in found
    assert 2 not in found
    assert uneven(found) <= 0.5 * uneven((0, 1, 2, 3))
    with pytest.raises(SelectionError, match="not one layer can be trained"):
        choose_affordable(scores([1.0, 2.0, 3.0]), lambda layers: cost(layers, 3), 0.1)
    with pytest.raises(SelectionError, match="no layer has an importance"):
        choose_affordable(scores([None, None]), uneven, 0.5)


def test_objectives():
    assert parse_objective("time=0.6") == Objective("time", 0.6)
    assert parse_objective("memory=1") == Objective("memory", 1.0)
    for wrong in ("time", "time=", "speed=0.5", "time=0", "time=1.5", "time=half"):
        with pytest.raises(SelectionError, match="expected time=SHARE or memory=SHARE"):
            parse_objective(wrong)


@pytest.mark.parametrize("what", ["time", "memory"])
def test_selections_keep_to_the_plan(what):
    rows = [{"question": f"w{i} w{2 * i % 9}", "answer": f"w{i % 7} w{i % 3}"} for i in range(24)]
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model = tiny("llama")
    found = select_layers(model, rows, tokenizer("decoder"), objective=f"{what}=0.75", adapter=adapter)
    assert f"within 0.75 of the {what} of all" in found.rule
    stack = find_stack(model)

    def planned(layers):
        p = Planner(model, stack, adapter).step(layers, StepSize("instruction", 8, tokens))
        return p.flops if what == "time" else p.memory_bytes

    lengths = [len(tokenizer("decoder")(f"{r['question']} {r['answer']}")["input_ids"]) for r in rows]
    tokens = round(sum(lengths) / len(lengths)) + 3  # about what a rendered row has
    assert planned(found.selected_layers) <= 0.8 * planned(tuple(range(4)))
    everything = select_layers(model, rows, tokenizer("decoder"), objective=f"{what}=1", adapter=adapter)
    assert everything.mask == "1111"


@pytest.mark.parametrize("layers", [8, 11, 50])
def test_the_share_of_all_affords_all_whatever_floats_make_of_it(layers):
    weights = [1] * (layers - 2) + [2, 2]

    def uneven(chosen):
        return sum(weights[i] for i in chosen)

    def fractional(chosen):
        return cost(chosen, layers, adapter=0.1)

    given_scores = scores([float(i + 1) for i in range(layers)])
    assert choose_affordable(given_scores, uneven, 1.0) == tuple(range(layers))
    assert choose_affordable(given_scores, fractional, 1.0) == tuple(range(layers))


@given(
    importance=st.lists(st.floats(0, 1), min_size=7, max_size=7, unique=True),
    adapters=st.lists(st.sampled_from([2.0, 6.0, 11.0]), min_size=7, max_size=7),
    together=st.floats(0, 4),
    share=st.floats(0.5, 1.0),
)
@example([0.21875, 1.0, 0.75, 0.25, 0.3125, 0.5, 0.375], [6.0, 2.0, 11.0, 2.0, 6.0, 11.0, 11.0], 3.0, 0.78515625)
def test_blocks_of_different_kinds_are_compared_within_the_share(importance, adapters, together, share):
    """Convolutions beside attention: adapters cost what they cost, whatever their blocks' class is called. Where a pair
    of layers costs more than both, what a trimmed choice is left with is compared with the other choices."""

    def uneven(layers):
        below = 70 + (7 - min(layers)) * 20
        return below + sum(adapters[i] for i in layers) + together * (len(layers) > 2)

    budget = share * uneven(tuple(range(7))) * (1 + 1e-9)
    value = np.array(importance) - min(importance)
    subsets = [s for n in range(1, 8) for s in itertools.combinations(range(7), n) if uneven(s) <= budget]
    if not subsets:
        return
    found = choose_affordable(scores(importance), uneven, share)
    assert uneven(found) <= budget
    best = max(value[list(s)].sum() for s in subsets)
    if together == 0:
        assert value[list(found)].sum() == pytest.approx(best)
    else:
        assert value[list(found)].sum() >= 0.5 * best  # the example comes to 0.71


def test_a_choice_that_turns_out_too_dear_is_held_against_the_others():
    """LFM2 at 0.8 of the time: layer 1 alone is worth .537, layers 2 to 4 fit and are worth .827."""
    importance = (0.97, 0.721, 0.594, 0.459, 0.327, 0.245, 0.203, 0.184)
    alone = (0.8249, 0.775, 0.7285, 0.6725, 0.626, 0.57, 0.5235, 0.4675)

    def planned(layers):
        return 1.0 if len(layers) == 8 else alone[min(layers)] + 0.0251 * (len(layers) - 1)

    assert choose_affordable(scores(importance), planned, 0.8) == (2, 3, 4)
    assert choose_affordable(scores(importance), planned, 0.8) == (2, 3, 4)
