"""Figures over several recipes: the paper's trade-off and appendix, and the sweep over the number of layers."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layersift.compare import shelf
from layersift.compare.pipeline import run
from layersift.compare.recipe import Recipe, read_recipe, read_yaml, unknown_key
from layersift.compare.report import LOWER_IS_BETTER, ArmResult
from layersift.compare.smoke import shrink
from layersift.errors import LayersiftError, unknown_name
from layersift.files import write_bytes, write_json
from layersift.progress import Reporter
from layersift.provenance import command, versions
from layersift.select.selection import Selection

COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666")


@dataclass(frozen=True)
class Outcome:
    """One recipe of a figure: its selection, and what each arm gave and cost."""

    selection: Selection
    results: tuple[ArmResult, ...]

    def of(self, arm: str) -> ArmResult | None:
        """The arm of that name, where it was trained."""
        return next((r for r in self.results if r.arm == arm), None)


@dataclass(frozen=True)
class FigureRecipe:
    """A figure's YAML file: which recipes to carry out, with which arms, and what to draw of them."""

    figure: str
    recipes: tuple[str, ...]
    arms: tuple[str, ...]
    output: str
    about: str = ""


def is_figure(path: Path) -> bool:
    """Whether a recipe's file describes a figure."""
    return "figure" in read_yaml(path)


def read_figure(path: Path, output: str | None = None) -> FigureRecipe:
    """The figure of a YAML file.

    Raises:
        LayersiftError: the file, a key or a value cannot be used.
    """
    values = read_yaml(path)
    known = ("figure", "recipes", "arms", "output", "about")
    for key in values:
        if key not in known:
            raise unknown_key(str(path), str(key), known)
    if values["figure"] not in FIGURES:
        raise unknown_name("figure", str(values["figure"]), FIGURES)
    for key in ("recipes", "arms"):
        if not isinstance(values.get(key), list):
            raise LayersiftError(f"{path}: {key!r} is to be a list of names")
    if output is None and not values.get("output"):
        raise LayersiftError(f"{path}: 'output' is missing")
    return FigureRecipe(
        figure=values["figure"],
        recipes=tuple(map(str, values["recipes"])),
        arms=tuple(map(str, values["arms"])),
        output=output or str(values["output"]),
        about=str(values.get("about", "")),
    )


def run_figure(
    figure: FigureRecipe, assignments: Sequence[str] = (), smoke: bool = False, reporter: Reporter | None = None
) -> dict[str, Outcome]:
    """Carry out the figure's recipes, under its output by their names, and draw `figure.png` and `figure.svg` there.

    Raises:
        LayersiftError: see :func:`layersift.compare.pipeline.run`.
    """
    reporter = reporter or Reporter()
    output = Path(f"{figure.output}-smoke" if smoke else figure.output)
    recipes = {name: read_recipe(shelf.find(name), list(assignments)) for name in figure.recipes}
    outcomes = {}
    for name, given in recipes.items():
        reporter.say(name)
        recipe = replace(given, arms=figure.arms, output=str(output / name))
        if smoke:
            recipe = replace(shrink(recipe, output / "inputs" / name), output=str(output / name))
        outcomes[name] = outcome(recipe, reporter)
    draw(figure.figure, outcomes, output)
    made = {"figure": figure.figure, "command": command(), "versions": versions()}
    values = {
        name: {"selection": o.selection.to_json(), "results": [r.to_json() for r in o.results]}
        for name, o in outcomes.items()
    }
    write_json(output / "figure.json", {"schema_version": 1, **made, "recipes": values})
    return outcomes


def outcome(recipe: Recipe, reporter: Reporter) -> Outcome:
    """Carry out a recipe; what is finished is read back."""
    results = run(recipe, reporter)
    return Outcome(Selection.load(Path(recipe.output) / "selection.json"), tuple(results))


def draw(kind: str, outcomes: Mapping[str, Outcome], directory: Path) -> None:
    """Write `figure.png` and `figure.svg` into ``directory``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FIGURES[kind](figure, outcomes)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    for suffix in ("png", "svg"):
        encoded = io.BytesIO()
        figure.savefig(encoded, dpi=150, format=suffix)
        write_bytes(directory / f"figure.{suffix}", encoded.getvalue())


def _score(result: ArmResult) -> tuple[str, float | None]:
    return next(iter(result.metrics.items()))


def _score_label(outcomes: Mapping[str, Outcome]) -> str:
    found = dict.fromkeys(_score(r)[0] for o in outcomes.values() for r in o.results)
    return ", ".join(f"{m} (lower is better)" if m.split()[0] in LOWER_IS_BETTER else m for m in found)


def _tradeoff(figure: Any, outcomes: Mapping[str, Outcome]) -> None:
    """Score against trainable parameters, the arms of a recipe joined by a line (the paper's Figure 1)."""
    axes = figure.add_subplot()
    markers = {"selected": "o", "all": "s", "random": "x", "published": "^"}
    for (name, found), colour in zip(outcomes.items(), _colours(outcomes), strict=True):
        trained = [r for r in found.results if r.trainable_parameters and _score(r)[1] is not None]
        trained.sort(key=lambda r: r.trainable_parameters or 0)
        points = [(r.trainable_parameters, _score(r)[1]) for r in trained]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1, alpha=0.5, zorder=1)
        for result, (x, y) in zip(trained, points, strict=True):
            axes.errorbar(x, y, yerr=result.standard_error, color=colour, fmt=markers.get(result.arm, "D"), capsize=2)
            axes.annotate(result.arm, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7, color="#444444")
        axes.plot([], [], color=colour, label=name)
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(_score_label(outcomes))
    axes.margins(x=0.15, y=0.15)
    axes.legend(frameon=False, fontsize=8)


def _similarity(figure: Any, outcomes: Mapping[str, Outcome]) -> None:
    """CKA of each layer's input and output, a line a recipe (the paper's appendix, Figure 1)."""
    axes = figure.add_subplot()
    for (name, found), colour in zip(outcomes.items(), _colours(outcomes), strict=True):
        values = [None if i is None else 1 - i for i in found.selection.importance]
        layers = [i for i, value in enumerate(values) if value is not None]
        axes.plot(layers, [values[i] for i in layers], color=colour, marker="o", markersize=3, label=name)
    axes.set_xlabel("layer (from 0; the paper counts from 1)")
    axes.set_ylabel("CKA of the layer's input and output")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _arms(figure: Any, outcomes: Mapping[str, Outcome]) -> None:
    """Score of each arm, a group of bars a recipe."""
    axes = figure.add_subplot()
    arms = list(dict.fromkeys(r.arm for o in outcomes.values() for r in o.results))
    width = 0.8 / len(arms)
    for place, (arm, colour) in enumerate(zip(arms, _colours(arms), strict=True)):
        found = [(i, r) for i, o in enumerate(outcomes.values()) if (r := o.of(arm)) and _score(r)[1] is not None]
        at = [i + (place - (len(arms) - 1) / 2) * width for i, _ in found]
        errors = [math.nan if r.standard_error is None else r.standard_error for _, r in found]
        axes.bar(at, [_score(r)[1] for _, r in found], width, yerr=errors, color=colour, label=arm, capsize=2)
    axes.set_xticks(range(len(outcomes)), [name.rpartition("/")[2] for name in outcomes])
    axes.set_ylabel(_score_label(outcomes))
    axes.margins(y=0.2)
    axes.legend(frameon=False, fontsize=8, ncols=len(arms), loc="upper left")


def _sweep(figure: Any, outcomes: Mapping[str, Outcome]) -> None:
    """Above, the score against the number of layers; below, what training cost as a share of all layers."""
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for (name, found), colour in zip(outcomes.items(), _colours(outcomes), strict=True):
        sizes = sorted((r for r in found.results if r.mask), key=lambda r: r.mask.count("1"))
        numbers = [r.mask.count("1") for r in sizes]
        scores = [_score(r)[1] for r in sizes]
        errors = [math.nan if r.standard_error is None else r.standard_error for r in sizes]
        upper.errorbar(numbers, scores, yerr=errors, color=colour, marker="o", markersize=4, capsize=2, label=name)
        if (untouched := found.of("untouched")) is not None:
            upper.axhline(_score(untouched)[1], color=colour, linestyle=":", linewidth=1)
            upper.annotate("untouched", (numbers[0], _score(untouched)[1]), fontsize=7, va="bottom", color=colour)
        for what, style in (("train_seconds", "-"), ("peak_memory_bytes", "--"), ("trainable_parameters", ":")):
            values = [getattr(r, what) for r in sizes]
            if all(values):
                label = {"train_seconds": "seconds", "peak_memory_bytes": "peak memory"}.get(what, "parameters")
                lower.plot(numbers, [v / values[-1] for v in values], style, color=colour, label=label)
    upper.set_ylabel(_score_label(outcomes))
    upper.legend(frameon=False, fontsize=8)
    lower.set_ylabel("cost, share of\nthe largest")
    lower.set_ylim(0, 1.1)
    lower.xaxis.get_major_locator().set_params(integer=True)
    lower.set_xlabel("layers adapted, the most important first")
    handles, labels = lower.get_legend_handles_labels()
    lower.legend(handles[:3], labels[:3], frameon=False, fontsize=7, ncols=3, loc="lower right")


def _colours(entries: Sequence[str] | Mapping[str, Any]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(entries))]


FIGURES: dict[str, Callable[[Any, Mapping[str, Outcome]], None]] = {
    "tradeoff": _tradeoff,
    "similarity": _similarity,
    "arms": _arms,
    "sweep": _sweep,
}
