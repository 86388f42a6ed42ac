"""What a comparison or an oracle leaves on disk: a page, pictures, tables as Markdown, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from layersift.compare import charts
from layersift.compare.agreement import between_positions
from layersift.compare.oracle import Oracle
from layersift.compare.page import Chart, Section, page, pictures
from layersift.compare.peft_export import method_comparison
from layersift.compare.recipe import Recipe
from layersift.compare.report import markdown
from layersift.compare.standings import Contest
from layersift.compare.tables import caption, headings, oracle_caption, oracle_rows, verdicts
from layersift.files import write_bytes, write_json, write_text
from layersift.provenance import command, machine, versions

DOMINATED = 0.5  # share of the variance from which on scores follow one dimension
CELL = 26  # pixels a row of cells takes


def write_contest(contest: Contest, output: Path) -> Path:
    """report.html, charts/, tables.md, compare.json and peft-method-comparison/, under ``output``."""
    sections = _sections(contest)
    lead = f"{contest.recipe.model.name} on {contest.data['source']}: {len(contest.standings)} choices of layers."
    write_text(output / "report.html", page("Which layers should carry the adapters?", lead, sections))
    _write_charts(sections, output / "charts")
    write_text(output / "tables.md", _tables(contest))
    write_json(output / "compare.json", contest.to_json())
    for name, values in method_comparison(contest).items():
        write_json(output / "peft-method-comparison" / f"{name}.json", values)
    return output / "report.html"


def write_oracle(oracle: Oracle, output: Path) -> Path:
    """oracle.html, charts/subsets, oracle.md and oracle.json, under ``output``."""
    said = oracle_caption(oracle)
    chart = Chart("subsets", charts.subsets(oracle), "Bars from the lowest to the highest seed; dashed: all layers.")
    sections = [
        Section("Every subset, the best first", charts=[chart]),
        Section("Where the criteria's choices stand", tables=[oracle_rows(oracle)]),
        _reproduce(oracle.recipe),
    ]
    write_text(output / "oracle.html", page("Every subset of layers, trained", said, sections))
    _write_charts(sections, output / "charts")
    write_text(output / "oracle.md", f"{markdown(oracle_rows(oracle))}\n{said}\n")
    write_json(output / "oracle.json", oracle.to_json())
    return output / "oracle.html"


def _write_charts(sections: Sequence[Section], directory: Path) -> None:
    for section in sections:
        for chart in section.charts:
            for suffix, content in pictures(chart).items():
                write_bytes(directory / f"{chart.name}.{suffix}", content)


def _tables(contest: Contest) -> str:
    parts = [f"## {title}\n\n{markdown(rows)}" for title, rows in headings(contest)]
    parts.append(f"{caption(contest)}\n")
    for method, size in _groups(contest):
        lines = [f"- {said}" for said in verdicts(contest, method, size)]
        parts.append(f"## What may be said: {size} layers, {method}\n\n" + "\n".join(lines) + "\n")
    parts.append(f"## Selections by token position\n\n{markdown(between_positions(contest.positions))}")
    return "\n".join(parts)


def _groups(contest: Contest) -> list[tuple[str, int]]:
    return list(dict.fromkeys((s.entry.method, s.entry.size) for s in contest.standings))


def _sections(contest: Contest) -> list[Section]:
    size = contest.scored[0].size
    rows = CELL * len([s for s in contest.scored if s.size == size])
    groups = _groups(contest)
    said = [
        f"{words}." if len(groups) == 1 else f"{of} layers, {method}: {words}."
        for method, of in groups
        for words in verdicts(contest, method, of)
    ]
    costs = [
        Chart(f"score-{cost}", charts.tradeoff(contest, cost), f"Against {charts.COSTS[cost][0]}.", 260)
        for cost in charts.COSTS
    ]
    square = min(480, 22 * (contest.num_layers + 1) + 60)
    sections = [
        Section(f"What may be said of {_counts(groups)}", said),
        Section("The figures", [caption(contest)], tables=[rows for _, rows in headings(contest)]),
        Section("Score against cost", ["Orange: nothing else costs less and scores more."], costs),
        Section(
            "The importance of every layer",
            charts=[
                Chart(
                    "importance",
                    charts.importance(contest),
                    "Lines: 95% intervals from halves of the sample. Hover for figures; choose a criterion below.",
                )
            ],
        ),
        Section(
            "What each criterion chooses",
            charts=[
                Chart(
                    "selections",
                    charts.selections(contest),
                    f"Dots: the {size} layers chosen. The fuller the cell, the surer: in how many halves of the sample "
                    "the layer is in the top. Rules that read no sample are always sure.",
                    rows,
                )
            ],
        ),
        Section(
            "How far criteria agree",
            [f"Layers that the {size} chosen at two token positions have in common, by the same measure:"],
            [
                Chart(
                    "agreement", charts.agreement(contest), "Rank correlation over all layers; hover for overlap.", rows
                )
            ],
            [between_positions(contest.positions)],
        ),
        Section(
            "CKA of every representation with every other",
            charts=[Chart("similarity", charts.similarity(contest), "R_0 enters the first block; debiased.", square)],
        ),
        Section("What was degenerate", _degenerate(contest)),
        _reproduce(contest.recipe),
    ]
    if any(s.converged for s in contest.scored):
        chart = Chart("convergence", charts.convergence(contest), "Mean of 30 samples of each size.")
        sections.insert(5, Section("How many samples are enough", charts=[chart]))
    return sections


def _counts(groups: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{size} layers with {method}" for method, size in groups)


def _degenerate(contest: Contest) -> list[str]:
    """What a reader should not take at face value."""
    notes: dict[str, None] = dict.fromkeys(f"{name} was left out: {why}." for name, why in contest.left_out.items())
    for s in contest.scored:
        for layer, why in s.scores.undefined.items():
            notes[f"{s.scores.criterion}, layer {layer}: {why}."] = None
        led = [i for i, share in enumerate(s.scores.top_dimension_share) if share is not None and share > DOMINATED]
        if led:
            layers = ", ".join(map(str, led))
            notes[f"{s.scores.criterion}: one dimension holds most of the variance behind layers {layers}."] = None
    for standing in contest.standings:
        for why in standing.failures:
            notes[f"{standing.entry.name}, {standing.entry.size} layers, {standing.entry.method}: failed: {why}"] = None
    return list(notes) or ["Nothing: every layer has every score, and no training failed."]


def _reproduce(recipe: Recipe) -> Section:
    made = {"command": command(), "versions": versions(), "machine": machine(), "recipe": recipe.to_json()}
    return Section("To run it again", verbatim=yaml.safe_dump(made, sort_keys=False, allow_unicode=True))
