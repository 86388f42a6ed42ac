"""Charts as pictures (PNG, SVG, PDF, without a browser), places for the names of points, every layer's importance."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class LayerBars:
    """What is drawn of one ranking of M layers."""

    name: str  # of the criterion
    importance: Sequence[float | None]
    selected: Sequence[int]
    undefined: Mapping[int, str] = field(default_factory=dict)  # layer -> why it has no importance
    low: Sequence[float | None] | None = None  # of the intervals
    high: Sequence[float | None] | None = None
    membership: Sequence[float] | None = None  # how probably a layer belongs among the selected
    marked: Mapping[int, str] = field(default_factory=dict)  # layer -> what else to mind there, in a word or two

    def rows(self) -> list[dict[str, Any]]:
        """A row a layer."""
        return [
            {
                "criterion": self.name,
                "layer": layer,
                "score": value,
                "low": value if self.low is None else self.low[layer],
                "high": value if self.high is None else self.high[layer],
                "in the top": None if self.membership is None else self.membership[layer],
                "chosen": "selected" if layer in self.selected else "frozen",
                "note": self.undefined.get(layer, ""),
                "top": max(0.0, value or 0.0, (self.high[layer] if self.high else None) or 0.0),
                "mark": "undefined" if layer in self.undefined else self.marked.get(layer, ""),
            }
            for layer, value in enumerate(self.importance)
        ]


def axis_of(metric: str) -> str:
    """What an axis of importances is called: of a similarity, what it is taken from."""
    name = {"cka": "CKA", "cka-biased": "biased CKA"}.get(metric)
    return f"importance (1 \u2212 {name})" if name else f"importance, {metric or 'not scored'}"


def importance_chart(rankings: Sequence[LayerBars], axis: str = "score") -> Any:
    """Every layer's score with its interval; of several rankings one is chosen from a list on the page."""
    alt = altair()
    tooltip = [
        alt.Tooltip("layer:O"),
        alt.Tooltip("score:Q", format=".4g"),
        alt.Tooltip("low:Q", format=".4g"),
        alt.Tooltip("high:Q", format=".4g"),
        alt.Tooltip("in the top:Q", format=".0%"),
        alt.Tooltip("chosen:N"),
        alt.Tooltip("note:N"),
    ]
    base = alt.Chart(rows_of([row for ranking in rankings for row in ranking.rows()]))
    if len(rankings) > 1:
        base = base.transform_filter("datum.criterion == criterion")
    layer = alt.X("layer:O", title="layer (from 0, as PEFT counts)", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    bars = base.mark_bar().encode(
        x=layer,
        y=alt.Y("score:Q", title=axis),
        color=alt.Color(
            "chosen:N",
            scale=alt.Scale(domain=["selected", "frozen"], range=[BLUE, GREY]),
            legend=alt.Legend(orient="top"),
        ).title(None),
        tooltip=tooltip,
    )
    # Dark within white, so that they are seen on bars of any colour and on light and dark pages.
    halo, core = (
        base.mark_rule(color=colour, strokeWidth=width).encode(
            x="layer:O", y=alt.Y("low:Q", title=axis), y2="high:Q", tooltip=tooltip
        )
        for colour, width in (("white", 5), ("#1f2328", 2))
    )
    marks = (
        base.transform_filter("datum.mark != ''")
        .mark_text(angle=270, align="left", baseline="middle", color=RED, fontSize=10, dx=4)
        .encode(x="layer:O", y=alt.Y("top:Q", title=axis), text="mark:N", tooltip=tooltip)
    )
    chart = bars + halo + core + marks
    if len(rankings) > 1:
        names = [ranking.name for ranking in rankings]
        choice = alt.param(name="criterion", value=names[0], bind=alt.binding_select(options=names, name="criterion "))
        chart = chart.add_params(choice)
    return chart
