"""What experiments leave on disk: pages, pictures, tables as Markdown, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from layersift.draw import picture
from layersift.experiment.compare import Comparison
from layersift.experiment.oracle import Oracle
from layersift.experiment.prepare import between_criteria, between_positions
from layersift.experiment.run import Outcome
from layersift.files import write_bytes, write_json, write_text
from layersift.provenance import command, versions
from layersift.report import charts
from layersift.report.comparison import reproduce, sections_of, sizes_of
from layersift.report.figures import draw
from layersift.report.page import Chart, Section, page, pictures, write_importance
from layersift.report.peft_layout import is_export, method_comparison
from layersift.report.tables import (
    caption,
    groups_of,
    headings,
    markdown,
    oracle_caption,
    oracle_rows,
    run_caption,
    run_rows,
    verdict_first,
    verdict_rows,
)


def write_run(outcome: Outcome, output: Path) -> None:
    """table.md, results.json and, where layers were chosen by scores, importance.png, under ``output``."""
    if outcome.selection is not None:
        write_importance(outcome.selection, output / "importance.png")
    if outcome.rows:
        first = "" if outcome.nothing_learned is None else f"{outcome.nothing_learned}\n\n"
        write_text(output / "table.md", f"{first}{markdown(run_rows(outcome))}\n{run_caption(outcome)}\n")
    write_json(output / "results.json", outcome.to_json())


def write_figure(kind: str, outcomes: Mapping[str, Outcome], output: Path) -> None:
    """figure.png, figure.svg and figure.json, under ``output``; and what each run leaves, under its own."""
    chart = draw(kind, outcomes)
    for suffix in (".png", ".svg"):
        write_bytes(output / f"figure{suffix}", picture(chart, suffix))
    values = {
        name: {"selection": o.selection and o.selection.to_json(), "results": o.results()}
        for name, o in outcomes.items()
    }
    made = {"figure": kind, "command": command(), "versions": versions()}
    write_json(output / "figure.json", {"schema_version": 2, **made, "recipes": values})


def write_comparison(comparison: Comparison, output: Path) -> Path:
    """report.html, charts/, tables.md, compare.json and peft-method-comparison/, under ``output``."""
    sections = sections_of(comparison)
    rows, tables = len(comparison.rows), len(groups_of(comparison))
    lead = (
        f"{comparison.recipe.model.name} on {comparison.scoring.data.source}: {rows} rows in "
        f"{'one table' if tables == 1 else f'{tables} tables'}."
    )
    write_text(
        output / "report.html",
        page("Which layers should carry the adapters?", lead, sections, verdict_first(comparison)),
    )
    _write_charts(sections, output / "charts")
    write_text(output / "tables.md", _tables(comparison))
    agreement = {str(size): between_criteria(comparison.scoring, size) for size in sizes_of(comparison)}
    write_json(output / "compare.json", comparison.to_json() | {"agreement": agreement})
    exported = {f"{name}.json": values for name, values in method_comparison(comparison).items()}
    for name, values in exported.items():
        write_json(output / "peft-method-comparison" / name, values)
    for file in (output / "peft-method-comparison").glob("*.json"):  # rows of criteria that are not asked for any more
        if file.name not in exported and is_export(file):
            file.unlink()
    return output / "report.html"


def write_oracle(oracle: Oracle, output: Path) -> Path:
    """oracle.html, charts/subsets, oracle.md and oracle.json, under ``output``."""
    said = oracle_caption(oracle)
    chart = Chart("subsets", charts.subsets(oracle), "Bars from the lowest to the highest seed; dashed: all layers.")
    nothing = oracle.nothing_learned
    sections = [Section("Every subset" if nothing else "Every subset, the best first", charts=[chart])]
    if oracle.placed:
        sections.append(Section("Where the criteria's choices stand", tables=[("", oracle_rows(oracle))]))
    if oracle.left_out:
        sections.append(Section("What was left out", [f"{name}: {why}." for name, why in oracle.left_out.items()]))
    sections.append(reproduce(oracle.recipe, oracle.contents))
    write_text(output / "oracle.html", page("Every subset of layers, trained", said, sections))
    _write_charts(sections, output / "charts")
    table = f"{markdown(oracle_rows(oracle))}\n" if oracle.placed else ""
    write_text(output / "oracle.md", f"{table}{said}\n")
    write_json(output / "oracle.json", oracle.to_json())
    return output / "oracle.html"


def _write_charts(sections: Sequence[Section], directory: Path) -> None:
    for section in sections:
        for chart in section.charts:
            for suffix, content in pictures(chart).items():
                write_bytes(directory / f"{chart.name}{suffix}", content)


def _tables(comparison: Comparison) -> str:
    parts = [f"{said}\n" for said in verdict_first(comparison)]
    parts += [f"## {title}\n\n{markdown(rows)}" for title, rows in headings(comparison)]
    parts.append(f"{caption(comparison)}\n")
    for group in groups_of(comparison):
        if rows := verdict_rows(comparison, group):
            parts.append(f"## What may be said: {group.title(comparison.num_layers)}\n\n{markdown(rows)}")
    parts.append(f"## Selections by token position\n\n{markdown(between_positions(comparison.scoring.positions))}")
    return "\n".join(parts)
