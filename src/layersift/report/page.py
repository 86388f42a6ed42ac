"""One self-contained HTML page: charts that can be hovered, tables, light and dark, readable on a phone, no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from layersift.draw import picture
from layersift.files import write_bytes
from layersift.records.selection import Selection

MASK = re.compile(r"([01]{3,})((?:, rank [0-9]+)?)")


@dataclass(frozen=True)
class Chart:
    """A chart and what is said below it."""

    name: str  # of its file, and of its place on the page
    chart: Any
    caption: str
    height: int = 300


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it, in this order."""

    title: str
    notes: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]] = ()  # each with its heading, if it has one
    verbatim: str = ""


@cache
def _vega_embed() -> str:
    """Vega's script, which takes seconds to put together."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def page(title: str, lead: str, sections: Sequence[Section], verdicts: Sequence[str] = ()) -> str:
    """The page as HTML; the verdicts, if there are some, come first."""
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    specs = {chart.name: _spec(chart) for section in sections for chart in section.charts}
    bundle = _vega_embed()
    return environment.from_string(template).render(
        title=title,
        lead=lead,
        sections=sections,
        verdicts=verdicts,
        split_mask=split_mask,
        code=bundle.replace("</script", "<\\/script"),
        # "</script" or "<!--" would end or open what HTML sees there; in JSON the sign may be written otherwise.
        charts=json.dumps(specs, ensure_ascii=False).replace("<", "\\u003c"),
    )


def _spec(chart: Chart) -> Mapping[str, Any]:
    spec: Mapping[str, Any] = chart.chart.properties(width="container", height=chart.height).to_dict()
    return spec


def pictures(chart: Chart) -> dict[str, bytes]:
    """The chart as PNG and SVG, by file ending."""
    fixed = chart.chart.properties(width=640, height=chart.height)
    return {suffix: picture(fixed, suffix) for suffix in (".png", ".svg")}


def split_mask(text: str) -> tuple[str, str]:
    """The mask of layers that a cell of a table begins with, which is drawn, and the rest of the text."""
    match = MASK.fullmatch(text)
    return (match[1], match[2]) if match else ("", text)


def write_importance(selection: Selection, path: Path) -> None:
    """The importance of each layer as a picture, in the format of its ending."""
    write_bytes(path, picture(selection.plot(), path.suffix))
