"""Altair, charts as pictures (PNG, SVG or PDF, without a browser), and places for the names of points."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from layersift.errors import LayersiftError

BLUE, ORANGE, GREY, RED = "#4c78a8", "#f58518", "#9aa0a6", "#d62728"
SUFFIXES = (".png", ".svg", ".pdf")


def altair() -> Any:
    """The library, imported when something is drawn: it takes half a second."""
    import altair as alt

    return alt


def rows_of(values: list[dict[str, Any]]) -> Any:
    """Rows as Altair takes them."""
    return altair().Data(values=values)


def require_picture(path: Path) -> None:
    """Refuse kinds of pictures that cannot be written, before the work is done.

    Raises:
        LayersiftError: another ending than .png, .svg or .pdf.
    """
    if path.suffix not in SUFFIXES:
        raise LayersiftError(f"{path}: unknown kind of picture {path.suffix!r}; known: {', '.join(SUFFIXES)}")


def picture(chart: Any, suffix: str) -> bytes:
    """A chart of fixed size as a picture on white; ``suffix`` is one of `SUFFIXES`."""
    import vl_convert

    spec = chart.configure(background="white").to_json()
    if suffix == ".svg":
        return vl_convert.vegalite_to_svg(spec).encode()
    if suffix == ".pdf":
        return bytes(vl_convert.vegalite_to_pdf(spec))
    return _in_few_colours(bytes(vl_convert.vegalite_to_png(spec, scale=2)))


def _in_few_colours(png: bytes) -> bytes:
    """The picture with a palette of 256 colours: a tenth of the bytes, and the same to the eye."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as drawn:
        flat = drawn.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        flat.save(file, "PNG", optimize=True)
    return file.getvalue()


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
    sides: list[Side | None] = []
    for (x, y), name in zip(at, names, strict=True):
        boxes = {side: _box(x, y, side, name) for side in SIDES}
        free = next((side for side, box in boxes.items() if _fits(box, taken, width, height)), None)
        if free is not None:
            taken.append(boxes[free])
        sides.append(free)
    return sides


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
