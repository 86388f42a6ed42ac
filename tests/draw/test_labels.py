"""Names beside points: none lies on another, on a point, or outside of the chart."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from layersift import draw
from layersift.draw import SIDES, place_names

WIDTH, HEIGHT = 300.0, 200.0
values = st.floats(0, 1, allow_nan=False)


@given(st.lists(st.tuples(values, values, st.text("abcdef", min_size=1, max_size=12)), min_size=1, max_size=12))
def test_names_lie_on_nothing(drawn):
    points, names = [(x, y) for x, y, _ in drawn], [name for *_, name in drawn]
    sides = place_names(points, names, WIDTH, HEIGHT)
    at = draw._in_pixels(points, WIDTH, HEIGHT)
    boxes = [
        draw._box(x, y, side, name) for (x, y), side, name in zip(at, sides, names, strict=True) if side is not None
    ]
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for left, top, right, bottom in boxes:
        assert left >= 0
        assert top >= 0
        assert right <= WIDTH
        assert bottom <= HEIGHT
        for x, y in at:
            assert not (left < x < right and top < y < bottom)


def test_a_lone_point_is_named_to_its_right_and_one_at_the_edge_to_its_left():
    assert place_names([(3.0, 5.0)], ["here"], WIDTH, HEIGHT) == [SIDES[0]]
    left, right = place_names([(0.0, 0.5), (1.0, 0.6)], ["one", "other"], WIDTH, HEIGHT)
    assert left is not None
    assert left.align == "left"
    assert right is not None
    assert right.align == "right"


def test_those_in_front_are_named_first():
    crowd = [(float(x), 0.5) for x in np.linspace(0.5, 0.51, 9)]
    sides = place_names([*crowd, (0.0, 0.0), (1.0, 1.0)], ["a long name"] * 9 + ["", ""], WIDTH, HEIGHT)
    assert sides[0] is not None
    assert None in sides[:9]
