"""The trainings that a comparison has left, read from its packed file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from layersift.config.fields import read_as
from layersift.experiment.choices import Choice
from layersift.experiment.judge import Trained
from layersift.files import read_json
from layersift.records.result import Result
from packed import packed_cells


def row_name(choice: Choice) -> str:
    """A row's name, with the share of all layers' operations that it may take."""
    return choice.name + ("" if choice.budget is None else f", for {choice.budget:.3g} of the operations")


def compared(place: Path) -> tuple[dict[str, Choice], Trained]:
    """The rows of a comparison by their names, and the trainings behind them."""
    kept = read_json(place / "compare.json", "a comparison")
    choices = [read_as(Choice, row["choice"], "a row of a comparison") for row in kept["rows"]]
    seeds = tuple(kept["seeds"])
    results = [read_as(Result, values, file) for file, values in packed_cells(place).items()]
    of = {result.cell: result for result in results}
    wanted = {cell for choice in choices for cell in choice.cells(seeds)}
    return {row_name(choice): choice for choice in choices}, Trained(
        seeds, {cell: of[cell] for cell in wanted if cell in of}, {}
    )


def together(first: Trained, again: Trained) -> Trained:
    """Both, those of the second time with seeds of their own."""
    later = max(first.seeds) + 1
    moved = {replace(cell, seed=cell.seed + later): result for cell, result in again.results.items()}
    seeds = (*first.seeds, *(seed + later for seed in again.seeds))
    return Trained(seeds, {**first.results, **moved}, {})
