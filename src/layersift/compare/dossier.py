"""What a comparison or an oracle leaves on disk: a page, pictures, tables as Markdown, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from layersift.compare import charts
from layersift.compare.agreement import between_criteria, between_positions
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
    agreement = {str(size): between_criteria(contest, size) for size in _sizes(contest)}
    write_json(output / "compare.json", contest.to_json() | {"agreement": agreement})
    exported = {f"{name}.json": values for name, values in method_comparison(contest).items()}
    for name, values in exported.items():
        write_json(output / "peft-method-comparison" / name, values)
    for file in (output / "peft-method-comparison").iterdir():  # rows of criteria that are not asked for any more
        if file.name not in exported:
            file.unlink()
    return output / "report.html"


def write_oracle(oracle: Oracle, output: Path) -> Path:
    """oracle.html, charts/subsets, oracle.md and oracle.json, under ``output``."""
    said = oracle_caption(oracle)
    chart = Chart("subsets", charts.subsets(oracle), "Bars from the lowest to the highest seed; dashed: all layers.")
    sections = [
        Section("Every subset, the best first", charts=[chart]),
        Section("Where the criteria's choices stand", tables=[("", oracle_rows(oracle))]),
        _reproduce(oracle.recipe, oracle.contents),
    ]
    if oracle.left_out:
        sections.insert(2, Section("What was left out", [f"{name}: {why}." for name, why in oracle.left_out.items()]))
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
    sizes = _sizes(contest)
    size = sizes[0]
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
        Section("The figures", [caption(contest)], tables=headings(contest)),
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
            [
                "The fuller the cell, the surer: in how many halves of the sample the layer is in the top. "
                "Rules that read no sample are always sure."
            ],
            [
                Chart(
                    name,
                    charts.selections(contest, n),
                    f"Dots: the {n} layers chosen.",
                    rows,
                )
                for name, n in _named("selections", sizes)
            ],
        ),
        Section(
            "How far criteria agree",
            [f"In the table: what the {size} layers chosen at two token positions, by one measure, have in common."],
            [
                Chart(
                    name,
                    charts.agreement(contest, n),
                    f"Rank correlation over all layers; hover for the overlap of the {n} chosen.",
                    rows,
                )
                for name, n in _named("agreement", sizes)
            ],
            [("", between_positions(contest.positions))],
        ),
        Section(
            "CKA of every representation with every other",
            charts=[Chart("similarity", charts.similarity(contest), "R_0 enters the first block; debiased.", square)],
        ),
        Section("What was degenerate", _degenerate(contest)),
        _reproduce(contest.recipe, contest.contents),
    ]
    if any(s.converged for s in contest.scored):
        drawn = [
            Chart(name, charts.convergence(contest, n), f"Of the {n} layers chosen; mean of 30 samples of each size.")
            for name, n in _named("convergence", sizes)
        ]
        sections.insert(5, Section("How many samples are enough", charts=drawn))
    return sections


def _sizes(contest: Contest) -> list[int]:
    return list(dict.fromkeys(s.size for s in contest.scored))


def _named(name: str, sizes: Sequence[int]) -> list[tuple[str, int]]:
    """A chart for each number of layers, with the number in its name where there are several."""
    return [(name if len(sizes) == 1 else f"{name}-{size}", size) for size in sizes]


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
    for of, rate in contest.rates.items():
        if rate.at_edge:
            notes[f"{rate.chosen:g}, the learning rate for {of}, is at the edge of those tried; try further ones."] = (
                None
            )
    if contest.recipe.compare.retention is not None and not any(s.retention for s in contest.standings):
        notes["No loss on other text was taken: this model does not write."] = None
    if len(contest.made) > 1:
        notes[f"Trainings were made in {len(contest.made)} surroundings: {'; '.join(map(_told, contest.made))}."] = None
    return list(notes) or ["Nothing: every layer has every score, and no training failed."]


def _told(made: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
    return (
        f"{made.get('device', 'unknown')}, {made.get('threads', '?')} threads, {packages}" if made else "not recorded"
    )


def _reproduce(recipe: Recipe, contents: Mapping[str, Any]) -> Section:
    made = {"command": command(), "versions": versions(), "machine": machine(), "contents": dict(contents)}
    made["recipe"] = recipe.to_json()
    return Section("To run it again", verbatim=yaml.safe_dump(made, sort_keys=False, allow_unicode=True))
