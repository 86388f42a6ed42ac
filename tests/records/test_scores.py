"""Rankings, thresholds and masks of scores, in both directions."""

import pytest

from layersift.config.quantities import layers_of, mask_of
from layersift.records.selection import LayerScores, side_by_side


def scores(*values, direction="high"):
    undefined = {i: "why" for i, v in enumerate(values) if v is None}
    return LayerScores("x", values, undefined, (0.5,) * len(values), 8, 1.5, direction)


@pytest.mark.parametrize(("direction", "beyond"), [("high", (1, 3)), ("low", (0, 5))])
def test_beyond_a_threshold_is_above_it_or_below_it_and_never_on_it(direction, beyond):
    found = scores(-1.0, 2.0, None, 0.5, 0.25, 0.0, direction=direction)
    assert found.beyond(0.25) == beyond


@pytest.mark.parametrize("direction", ["high", "low"])
def test_the_layers_beyond_a_threshold_are_the_first_of_the_ranking(direction):
    found = scores(0.3, -0.1, 0.9, 0.4, None, -0.7, direction=direction)
    for threshold in (-1.0, -0.5, 0.0, 0.35, 0.95):
        beyond = found.beyond(threshold)
        assert beyond == found.top(len(beyond))


@pytest.mark.parametrize(("direction", "ranking"), [("high", (2, 0, 3, 1)), ("low", (1, 0, 3, 2))])
def test_ties_go_to_the_lower_layer_in_both_directions(direction, ranking):
    found = scores(1.0, 0.0, 5.0, 1.0, None, direction=direction)
    assert found.ranking == ranking
    assert [found.top(n) for n in range(6)] == [
        (),
        ranking[:1],
        tuple(sorted(ranking[:2])),
        tuple(sorted(ranking[:3])),
        (0, 1, 2, 3),
        (0, 1, 2, 3, 4),
    ]


def test_layers_without_a_score_fill_up_from_the_lowest():
    assert scores(None, None, 1.0, None).top(3) == (0, 1, 2)


@pytest.mark.parametrize("direction", ["high", "low"])
def test_stacks_side_by_side_count_their_layers_through(direction):
    first, second = scores(1.0, None, direction=direction), scores(None, 3.0, 2.0, direction=direction)
    both = side_by_side([first, second])
    assert both.importance == (1.0, None, None, 3.0, 2.0)
    assert both.undefined == {1: "why", 2: "why"}
    assert both.top_dimension_share == (0.5,) * 5
    assert both.seconds == 3.0
    assert both.num_samples == 8
    assert both.ranking == ((3, 4, 0) if direction == "high" else (0, 4, 3))


def test_a_mask_and_its_layers():
    assert mask_of((0, 3), 5) == "10010"
    assert layers_of("10010") == (0, 3)
    assert layers_of(mask_of((), 3)) == ()
