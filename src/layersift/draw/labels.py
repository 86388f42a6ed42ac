"""Where the names of points stand in a chart, so that none lies on another or on a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LETTER, LINE, GAP = 5.6, 12.0, 7.0  # pixels: a letter's width and height at 10 px, and the distance from the point


class Side(NamedTuple):
    """On which side of its point a name stands, in Vega's terms."""

    align: str  # of the text: "left" is right of the point
    dx: float
    dy: float


SIDES = (
    Side("left", GAP, 0),
    Side("right", -GAP, 0),
    Side("center", 0, -GAP - LINE / 2),
    Side("center", 0, GAP + LINE / 2),
    Side("left", GAP, -LINE),
    Side("left", GAP, LINE),
    Side("right", -GAP, -LINE),
    Side("right", -GAP, LINE),
)
Box = tuple[float, float, float, float]  # left, top, right, bottom


def place_names(
    points: Sequence[tuple[float, float]], names: Sequence[str], width: float, height: float
) -> list[Side | None]:
    """A side for each name, those in front first; None where no side is free.

    Args:
        points: (x, y) of each, in any units, higher y further up; the axes begin and end at the outermost.
        width: of the chart, in pixels, as ``height``.
    """
    at = _in_pixels(points, width, height)
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in at]
    found: list[Side | None] = []
    for (x, y), name in zip(at, names, strict=True):
        boxes = {side: _box(x, y, side, name) for side in SIDES}
        free = next((side for side, box in boxes.items() if _fits(box, taken, width, height)), None)
        if free is not None:
            taken.append(boxes[free])
        found.append(free)
    return found


def _in_pixels(points: Sequence[tuple[float, float]], width: float, height: float) -> list[tuple[float, float]]:
    xs, ys = zip(*points, strict=True) if points else ((), ())

    def scaled(value: float, values: Sequence[float], pixels: float) -> float:
        spread = max(values) - min(values)
        return pixels / 2 if spread == 0 else (value - min(values)) / spread * pixels

    return [(scaled(x, xs, width), height - scaled(y, ys, height)) for x, y in points]


def _box(x: float, y: float, side: Side, name: str) -> Box:
    wide = LETTER * len(name)
    left = x + side.dx - {"left": 0.0, "right": wide, "center": wide / 2}[side.align]
    return left, y + side.dy - LINE / 2, left + wide, y + side.dy + LINE / 2


def _fits(box: Box, taken: Sequence[Box], width: float, height: float) -> bool:
    left, top, right, bottom = box
    inside = left >= 0 and right <= width and top >= 0 and bottom <= height
    return inside and not any(left < o[2] and o[0] < right and top < o[3] and o[1] < bottom for o in taken)
