"""An evidence page, and the charts on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layersift.draw import BLUE, GREY, ORANGE, RED, altair, rows_of
from layersift.report.tables import markdown
from layersift.statistics.intervals import Interval, Unit

COLOURS = (BLUE, ORANGE, GREY, RED, "#54a24b", "#b279a2", "#9d755d", "#72b7b2")

LONG = 32  # characters, from which on a cell is text


@dataclass(frozen=True)
class Page:
    """One question and its answer."""

    name: str  # of the file
    question: str
    answer: str  # in one sentence
    sections: Sequence[str]  # Markdown
    commands: Sequence[str]  # that made what it rests on
    changes: str  # what would change the answer
    charts: Mapping[str, Any] = field(default_factory=dict)  # by the name of their file

    def text(self) -> str:
        """As Markdown."""
        parts = [
            f"# {self.question}",
            f"> **{self.answer}**",
            *self.sections,
            "## What would change the answer",
            self.changes,
            "## How it was made",
            _commands([*self.commands, "python benchmarks/evidence_pages.py  # this page, from committed results"]),
            "[The protocol](protocol.md) defines words, margins and models.",
        ]
        return "\n\n".join(parts) + "\n"


def _commands(lines: Sequence[str]) -> str:
    body = "\n".join(lines)
    return f"```sh\n{body}\n```"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; columns of numbers are flush right."""
    head, _, *body = markdown([list(header), *map(list, rows)]).strip().split("\n")
    sides = ["---:" if _numbers([row[i] for row in rows]) else "---" for i in range(len(header))]
    return "\n".join([head, f"| {' | '.join(sides)} |", *body])


def _numbers(cells: Sequence[str]) -> bool:
    """Whether a column holds figures, with their intervals or a word where there is none."""
    return any(cell[:1].isdigit() or (cell[:1] in "+-" and cell[1:2].isdigit()) for cell in cells) and all(
        len(cell) < LONG for cell in cells
    )


def picture_of(name: str, what: str) -> str:
    """A chart's place on the page."""
    return f"![{what}](charts/{name}.png)"


def intervals(found: Sequence[tuple[str, str, Interval | None]], unit: Unit, title: str) -> Any:
    """A dot with its interval for every line and series; the dashed line is no difference.

    Args:
        found: the line, the series and the difference.
    """
    alt = altair()
    rows = [
        {
            "line": line,
            "series": series,
            "value": one.value * unit.factor,
            "low": (one.value if one.low is None else one.low) * unit.factor,
            "high": (one.value if one.high is None else one.high) * unit.factor,
        }
        for line, series, one in found
        if one is not None
    ]
    lines, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("line", "series"))
    axis = alt.Axis(labelLimit=260, title=None, labelFontSize=13)
    y = alt.Y("line:N", sort=lines, axis=axis)
    apart = alt.YOffset("series:N", sort=names)
    scale = alt.Scale(domain=names, range=list(COLOURS[: len(names)]))
    colour = alt.Color("series:N", scale=scale, sort=names, legend=alt.Legend(title=None, orient="top", labelLimit=320))
    base = alt.Chart(rows_of(rows)).encode(y=y, yOffset=apart, color=colour)
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    dots = base.mark_circle(size=70, opacity=1).encode(x="value:Q")
    zero = alt.Chart(rows_of([{"zero": 0}])).mark_rule(strokeDash=[4, 4], color="#555").encode(x="zero:Q")
    return (zero + bars + dots).properties(width=560, height=alt.Step(16 if len(names) > 1 else 30))


def lines(rows: list[dict[str, Any]], x: str, y: str, series: str, titles: tuple[str, str]) -> Any:
    """A line with dots for every series."""
    alt = altair()
    names = list(dict.fromkeys(row[series] for row in rows))
    scale = alt.Scale(domain=names, range=list(COLOURS[: len(names)]))
    return (
        alt.Chart(rows_of(rows))
        .mark_line(point=alt.OverlayMarkDef(size=60))
        .encode(
            x=alt.X(f"{x}:O", title=titles[0], axis=alt.Axis(labelAngle=0)),
            y=alt.Y(f"{y}:Q", title=titles[1]),
            color=alt.Color(f"{series}:N", scale=scale, sort=names, legend=alt.Legend(title=None, labelLimit=320)),
        )
        .properties(width=480, height=260)
    )
