"""One self-contained HTML page: charts that can be hovered, tables, light and dark, readable on a phone, no network."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersift.draw.pictures import picture
from layersift.files import write_bytes
from layersift.records.selection import Selection

MASK = re.compile(r"([01]{3,})((?:, rank [0-9]+)?)")
STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --line: #d1d9e0; --back: #ffffff; --band: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9198a1; --line: #3d444d; --back: #0d1117; --band: #151b23; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h3 { font-size: 1rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
p.note, figcaption { color: var(--soft); font-size: .9rem; }
figure { margin: 1rem 0; } .chart { width: 100%; min-height: 3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--back); }
.mask { display: inline-flex; gap: 1px; vertical-align: middle; }
.mask i { width: .5rem; height: .8rem; background: var(--line); } .mask i.on { background: #4c78a8; }
p.verdict { font-size: 1.15rem; }
tr:hover td { background: var(--band); }
pre { background: var(--band); padding: .8rem; overflow-x: auto; font-size: .8rem; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
.vega-bind { font-size: .9rem; } .vega-bind select { font: inherit; }
"""

# Colours of axes and texts follow the page; a change between light and dark draws the charts again.
SCRIPT = """
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const text = dark.matches ? "#e6edf3" : "#1f2328", grid = dark.matches ? "#30363d" : "#e6e8eb";
  const config = { background: "transparent", view: { stroke: "transparent" }, font: "system-ui, sans-serif",
    axis: { labelColor: text, titleColor: text, gridColor: grid, domainColor: grid, tickColor: grid },
    legend: { labelColor: text, titleColor: text }, header: { labelColor: text, titleColor: text } };
  for (const [name, spec] of Object.entries(CHARTS)) {
    const tooltip = { theme: dark.matches ? "dark" : "light" };
    vegaEmbed("#" + name, spec, { config, actions: false, renderer: "svg", tooltip });
  }
}
dark.addEventListener("change", draw);
draw();
"""


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


def page(title: str, lead: str, sections: Sequence[Section], verdict: str = "") -> str:
    """The page as HTML; the verdict, if there is one, comes first."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    specs = {c.name: _spec(c) for section in sections for c in section.charts}
    body = "".join(_section(section) for section in sections)
    first = f'<p class="verdict">{html.escape(verdict)}</p>\n' if verdict else ""
    # "</script" or "<!--" would end or open what HTML sees there; in JSON the sign may be written otherwise.
    data = json.dumps(specs, ensure_ascii=False).replace("<", "\\u003c")
    code = bundle.replace("</script", "<\\/script")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{first}<p>{html.escape(lead)}</p>\n{body}"
        f'<script type="module">{code}</script>\n'
        f'<script type="module">\nconst CHARTS = {data};\n{SCRIPT}</script>\n</body>\n</html>\n'
    )


def _spec(chart: Chart) -> Mapping[str, Any]:
    spec: Mapping[str, Any] = chart.chart.properties(width="container", height=chart.height).to_dict()
    return spec


def pictures(chart: Chart) -> dict[str, bytes]:
    """The chart as PNG and SVG, by file ending."""
    fixed = chart.chart.properties(width=640, height=chart.height)
    return {suffix: picture(fixed, suffix) for suffix in (".png", ".svg")}


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>\n"]
    parts += [f'<p class="note">{html.escape(note)}</p>\n' for note in section.notes]
    figures = [
        f'<figure><div class="chart" id="{c.name}"></div><figcaption>{html.escape(c.caption)}</figcaption></figure>\n'
        for c in section.charts
    ]
    parts.append(f'<div class="row">{"".join(figures)}</div>\n' if len(figures) > 1 else "".join(figures))
    parts += [_table(heading, rows) for heading, rows in section.tables]
    if section.verbatim:
        parts.append(f"<pre>{html.escape(section.verbatim)}</pre>\n")
    return "".join(parts)


def _table(heading: str, rows: Sequence[Sequence[str]]) -> str:
    over = f"<h3>{html.escape(heading)}</h3>\n" if heading else ""
    header, *body = rows
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = "".join(f"<tr>{''.join(f'<td>{cell_of(cell)}</td>' for cell in row)}</tr>\n" for row in body)
    return f'{over}<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody></table></div>\n'


def cell_of(text: str) -> str:
    """What stands in a cell of a table, as HTML: a mask as small cells, one a layer, with its digits as their label."""
    found = MASK.fullmatch(text)
    if found is None:
        return html.escape(text)
    mask, rest = found.groups()
    cells = "".join('<i class="on"></i>' if digit == "1" else "<i></i>" for digit in mask)
    return f'<span class="mask" role="img" title="{mask}" aria-label="{mask}">{cells}</span>{html.escape(rest)}'


def write_importance(selection: Selection, path: Path) -> None:
    """The importance of each layer as a picture, in the format of its ending."""
    write_bytes(path, picture(selection.plot(), path.suffix))
