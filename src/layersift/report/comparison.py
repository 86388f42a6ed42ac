"""The page of a comparison: what may be said, the figures, the charts, and what was degenerate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from layersift.config.fields import read_as
from layersift.config.recipe import Recipe
from layersift.experiment.compare import Comparison
from layersift.experiment.prepare import between_positions
from layersift.provenance import made_by
from layersift.records.runs import Environment
from layersift.records.selection import dominated
from layersift.report import charts
from layersift.report.page import Chart, Section
from layersift.report.tables import (
    Group,
    caption,
    groups_of,
    groups_with_curves,
    headings,
    verdict_rows,
)

CELL = 26  # pixels a row of cells takes


def sections_of(comparison: Comparison) -> list[Section]:
    """What the page of a comparison says, in this order."""
    sizes = sizes_of(comparison)
    size = sizes[0]
    rows = CELL * len([s for s in comparison.scoring.scored if s.size == size])
    groups = groups_of(comparison)
    said = [
        ("" if len(groups) == 1 else group.title(comparison.num_layers), outcomes)
        for group in groups
        if (outcomes := verdict_rows(comparison, group))
    ]
    costs = [
        Chart(f"score-{cost}", charts.tradeoff(comparison, cost), f"Against {charts.COSTS[cost][0]}.", 260)
        for cost, (_, read) in charts.COSTS.items()
        if any(read(row) is not None for row in comparison.rows)
    ]
    nothing = comparison.nothing_learned
    front = [] if nothing else ["Orange: nothing else costs less and scores more."]
    square = min(480, 22 * (comparison.num_layers + 1) + 60)
    return [
        Section(f"What may be said of {_counts(groups)}", [nothing] if nothing else [], tables=said),
        Section("The figures", [caption(comparison)], tables=headings(comparison)),
        Section("Score against cost", front, costs),
        *_on_the_way(comparison),
        Section(
            "The importance of every layer",
            charts=[
                Chart(
                    "importance",
                    charts.importance(comparison),
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
                    charts.selections(comparison, n),
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
                    charts.agreement(comparison, n),
                    f"Rank correlation over all layers; hover for the overlap of the {n} chosen.",
                    rows,
                )
                for name, n in _named("agreement", sizes)
            ],
            [("", between_positions(comparison.scoring.positions))],
        ),
        *_enough_samples(comparison, sizes),
        Section(
            "CKA of every representation with every other",
            charts=[
                Chart("similarity", charts.similarity(comparison), "R_0 enters the first block; debiased.", square)
            ],
        ),
        Section("What was degenerate", _degenerate(comparison)),
        reproduce(comparison.recipe, comparison.contents),
    ]


def _on_the_way(comparison: Comparison) -> list[Section]:
    """The curves, where trainings were looked at."""
    groups = groups_with_curves(comparison)
    drawn = [
        Chart(
            "curves" if len(groups) == 1 else f"curves-{place}",
            charts.curves(comparison, group),
            f"{group.title(comparison.num_layers)}. Dashed: the score to come to.",
        )
        for place, group in enumerate(groups)
    ]
    said = (
        "Each training is judged at every eighth of its steps on rows that it does not see. A training that is half "
        "done is not a training of half the length, whose learning rate falls sooner."
    )
    return [Section("Score on the way", [said], drawn)] if drawn else []


def _enough_samples(comparison: Comparison, sizes: Sequence[int]) -> list[Section]:
    """How criteria converge, where any does."""
    if not any(s.converged for s in comparison.scoring.scored):
        return []
    drawn = [
        Chart(name, charts.convergence(comparison, n), f"Of the {n} layers chosen; mean of 30 samples of each size.")
        for name, n in _named("convergence", sizes)
    ]
    return [Section("How many samples are enough", charts=drawn)]


def sizes_of(comparison: Comparison) -> list[int]:
    """The numbers of layers that were compared."""
    return list(dict.fromkeys(s.size for s in comparison.scoring.scored))


def _named(name: str, sizes: Sequence[int]) -> list[tuple[str, int]]:
    """A chart for each number of layers, with the number in its name where there are several."""
    return [(name if len(sizes) == 1 else f"{name}-{size}", size) for size in sizes]


def _counts(groups: Sequence[Group]) -> str:
    return ", ".join(dict.fromkeys(f"{group.size} layers with {group.method}" for group in groups))


def _degenerate(comparison: Comparison) -> list[str]:
    """What a reader should not take at face value."""
    notes: dict[str, None] = dict.fromkeys(
        f"{name} was left out: {why}." for name, why in comparison.scoring.left_out.items()
    )
    for s in comparison.scoring.scored:
        for layer, why in s.scores.undefined.items():
            notes[f"{s.scores.criterion}, layer {layer}: {why}."] = None
        if led := dominated(s.scores.top_dimension_share):
            layers = ", ".join(map(str, led))
            notes[f"{s.scores.criterion}: one dimension holds most of the variance behind layers {layers}."] = None
    for row in comparison.rows:
        for why in row.failures:
            notes[f"{row.choice.name}, {row.choice.size} layers, {row.choice.train.method}: failed: {why}"] = None
        for notice in row.notices:
            notes[f"{row.choice.name}, {row.choice.size} layers, {row.choice.train.method}: {notice}."] = None
    for of, rate in comparison.rates.items():
        if len(rate.alike) > 1:
            alike = ", ".join(f"{r:g}" for r in rate.alike)
            notes[f"Learning rates {alike} for {of}: no significant difference on the rows held back."] = None
        if rate.at_edge:
            notes[f"{rate.chosen:g}, the learning rate for {of}, is at the edge of those tried; try further ones."] = (
                None
            )
    if comparison.curves.missing:
        missing = ", ".join(comparison.curves.missing)
        notes[f"Without a curve, since a training of theirs failed or was not looked at: {missing}."] = None
    for method, why in comparison.not_planned.items():
        notes[f"There are no rows of equal cost with {method}: {why}."] = None
    if comparison.recipe.compare.retention is not None and not any(s.retention for s in comparison.rows):
        notes["No loss on other text was taken: this model does not write."] = None
    if len(comparison.made) > 1:
        notes[
            f"Trainings were made in {len(comparison.made)} environments: {'; '.join(map(_told, comparison.made))}."
        ] = None
    return list(notes) or ["Nothing: every layer has every score, and no training failed."]


def _told(made: Mapping[str, Any]) -> str:
    return read_as(Environment, dict(made), "a cell").described()


def reproduce(recipe: Recipe, contents: Mapping[str, Any]) -> Section:
    """Everything needed to get the same again."""
    made = {**made_by(), "contents": dict(contents), "recipe": recipe.to_json()}
    return Section("To run it again", verbatim=yaml.safe_dump(made, sort_keys=False, allow_unicode=True))
