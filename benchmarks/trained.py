"""The trainings that a comparison has left, read from its packed file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from layersift.config.fields import read_as
from layersift.experiment.choices import Choice
from layersift.experiment.judge import Trained
from layersift.files import read_json
from layersift.records.runs import Cell, Result, flat_settings
from packed import packed_cells


def read_choice(values: Mapping[str, Any]) -> Choice:
    """A row of a comparison's file, also as versions up to 0.1 wrote it."""
    if "variants" in values:
        return read_as(Choice, values, "a row of a comparison")
    train = flat_settings(values)
    variants = [{"name": values["name"], "mask": mask, "train": train} for mask in values["masks"]]
    kept = {name: values.get(name) for name in ("name", "size", "scoring_seconds", "budget", "flops")}
    return read_as(Choice, {**kept, "variants": variants}, "a row of a comparison")


def row_name(choice: Choice) -> str:
    """A row's name, with the share of all layers' FLOPs that it may take."""
    return choice.name + ("" if choice.budget is None else f" at {choice.budget:.3g} of the FLOPs")


def results_in(place: Path, below: str = "") -> dict[Cell, Result]:
    """Every training that a directory's packed file holds, or those of a directory below it."""
    cells = packed_cells(place).items()
    results = [Result.from_json(values, file) for file, values in cells if file.startswith(below)]
    return {result.cell: result for result in results}


def judged_on_test(results: Mapping[Cell, Result]) -> Trained:
    """Those that were judged on test rows, and their seeds."""
    judged = {cell: result for cell, result in results.items() if cell.judged == "test"}
    return Trained(tuple(sorted({cell.seed for cell in judged})), judged, {})


def compared_rows(place: Path) -> tuple[list[Choice], tuple[int, ...]]:
    """The rows of a comparison, and the seeds that it asked for."""
    kept = read_json(place / "compare.json", "a comparison")
    return [read_choice(row["choice"]) for row in kept["rows"]], tuple(kept["seeds"])


def compared(place: Path) -> tuple[dict[str, Choice], Trained]:
    """The rows of a comparison of one number of layers by their names, and the trainings behind them."""
    (choices, seeds), of = compared_rows(place), results_in(place)
    wanted = {cell for choice in choices for cell in choice.cells(seeds)}
    trained = Trained(seeds, {cell: of[cell] for cell in wanted if cell in of}, {})
    return {row_name(choice): choice for choice in choices}, trained


def together(first: Trained, again: Trained) -> Trained:
    """Both, those of the second time with seeds of their own; one that stands in both counts once."""
    later = max(first.seeds) + 1
    others = {cell: result for cell, result in again.results.items() if not _copied(first.results.get(cell), result)}
    moved = {replace(cell, seed=cell.seed + later): result for cell, result in others.items()}
    seeds = (*first.seeds, *(seed + later for seed in again.seeds))
    return Trained(seeds, {**first.results, **moved}, {})


def _copied(one: Result | None, other: Result) -> bool:
    """Whether two files hold the same training: two machines round otherwise."""
    return one is not None and list(one.outcomes) == list(other.outcomes)
