"""How strategies are written, and which layers they train when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layersift.config.train import TrainSettings, parse_strategy
from layersift.errors import LayersiftError, SelectionError

FORMS = [
    "static",
    "freezing",
    "freezing:1@0.1,2@0.5",
    "rotating:1@3",
    "skipping:0.5",
    "converging",
    "converging:0.9@0.2",
]


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("freezing:2@0.25,5@0.5", {0: 0, 24: 0, 25: 2, 49: 2, 50: 5, 99: 5}),
        ("freezing:1@0", {0: 1}),
        ("freezing", {0: 0, 12: 0, 13: 1, 25: 2, 37: 2, 38: 3, 49: 3, 50: 4, 99: 4}),  # of six layers, four in the end
    ],
)
def test_the_cut_is_where_the_share_of_the_training_says(text, when):
    layers = range(6)
    for step, lowest in when.items():
        assert parse_strategy(text).trained(layers, 6, step, 100) == tuple(range(lowest, 6)), step


@given(st.sampled_from(FORMS), st.integers(1, 40), st.integers(1, 300), st.integers(0, 9), st.data())
def test_some_adapted_layer_is_trained_at_every_step_and_a_frozen_one_never_again(text, layers, steps, seed, data):
    adapted = sorted(data.draw(st.sets(st.integers(0, layers - 1), min_size=1)))
    strategy = parse_strategy(text)
    try:
        strategy.require_layers(adapted, layers)
    except SelectionError:
        return
    before = set(adapted)
    for step in range(steps):
        now = set(strategy.trained(adapted, layers, step, steps, seed))
        assert now
        assert now <= set(adapted)
        if strategy.name == "freezing":
            assert now <= before
        elif strategy.name != "rotating":
            assert now == set(adapted)
        before = now
    if strategy.name == "freezing" and adapted == list(range(layers)):
        assert strategy.trained(adapted, layers, 0, steps) == tuple(adapted)  # begins with all


def test_converging_looks_at_even_shares_of_the_steps_and_never_at_the_end():
    assert parse_strategy("converging").looks(32) == list(range(2, 32, 2))
    assert parse_strategy("converging:0.9@0.3").looks(100) == [30, 60, 90]
    assert parse_strategy("converging").looks(3) == [1, 2]
    assert parse_strategy("freezing").looks(100) == []
    with pytest.raises(LayersiftError, match=r"a share of 0\.001 to 0\.5"):
        parse_strategy("converging:0.9@0.6")


def test_rotation_stays_for_some_steps_reaches_all_layers_and_follows_the_seed():
    strategy = parse_strategy("rotating:2@5")
    drawn = [strategy.trained(range(6), 6, step, 400, 7) for step in range(400)]
    assert all(len(set(drawn[i : i + 5])) == 1 for i in range(0, 400, 5))
    assert {layer for layers in drawn for layer in layers} == set(range(6))
    assert drawn == [strategy.trained(range(6), 6, step, 400, 7) for step in range(400)]
    assert drawn != [strategy.trained(range(6), 6, step, 400, 8) for step in range(400)]


@pytest.mark.parametrize(
    "text", ["", "up", "freezing:", "freezing:a@1", "freezing:2@0.5,1@0.7", "freezing:1@0.5,2@0.5", "freezing:1@1.5",
             "rotating", "rotating:0@3", "rotating:2", "skipping", "skipping:0", "skipping:1.5", "static:1"],
)  # fmt: skip
def test_other_forms_are_refused_in_one_line(text):
    with pytest.raises(LayersiftError, match="strategy") as refused:
        TrainSettings(strategy=text)
    assert "\n" not in str(refused.value)


def test_layers_that_would_not_be_trained_in_the_end_are_refused():
    with pytest.raises(SelectionError, match="ends below layer 4, and no layer from there on"):
        parse_strategy("freezing").require_layers((0, 3), 6)
    with pytest.raises(SelectionError, match="3 layers at a time, but only 2"):
        parse_strategy("rotating:3@1").require_layers((0, 3), 6)
    with pytest.raises(LayersiftError, match="adalora"):
        TrainSettings(method="adalora", strategy="freezing")
