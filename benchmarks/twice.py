"""TREC trained twice with the same seeds, on a CPU and on a GPU: what both together say of each way of training.

    python benchmarks/twice.py

Reads the trainings that benchmarks/strategies.py left of minilm-trec and minilm-trec-again. The same seed on another
machine is another training, since rounding differs from the first step on; so both count as runs of their own.
Results: benchmarks/results/strategies/minilm-trec-twice.json and, as a table, .md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from layersift.config.fields import json_values, read_as
from layersift.experiment.choices import ALL, UNTOUCHED, Choice
from layersift.experiment.grid import finished
from layersift.experiment.judge import Trained, runs_of
from layersift.files import read_json, write_json, write_text
from layersift.provenance import command, versions
from layersift.report.markdown import markdown
from layersift.report.tables import difference_text
from layersift.statistics.intervals import difference
from layersift.statistics.verdicts import POINTS
from packed import unpack
from strategies import row_name

RESULTS = Path(__file__).resolve().parent / "results" / "strategies"
TWICE = ("minilm-trec", "minilm-trec-again")


def compared(place: Path) -> tuple[dict[str, Choice], Trained]:
    """The rows of a comparison by their names, and the trainings behind them."""
    unpack(place)
    kept = read_json(place / "compare.json", "a comparison")
    choices = [read_as(Choice, row["choice"], "a row of a comparison") for row in kept["rows"]]
    seeds = tuple(kept["seeds"])
    cells = [cell for choice in choices for cell in choice.cells(seeds)]
    return {row_name(choice): choice for choice in choices}, Trained(seeds, finished(place, cells), {})


def together(first: Trained, again: Trained) -> Trained:
    """Both, those of the second time with seeds of their own."""
    later = max(first.seeds) + 1
    moved = {replace(cell, seed=cell.seed + later): result for cell, result in again.results.items()}
    seeds = (*first.seeds, *(seed + later for seed in again.seeds))
    return Trained(seeds, {**first.results, **moved}, {})


def main() -> None:
    """Every row that both have."""
    (choices, first), (others, again) = (compared(RESULTS / place) for place in TWICE)
    rows, values = [["layers", "from all, first", "again", "together"]], dict[str, Any]()
    for name, choice in choices.items():
        whole = row_name(replace(choice, name=ALL))
        if name in (whole, UNTOUCHED) or name not in others:
            continue
        apart = [
            difference(runs_of(choice, trained), runs_of(choices[whole], trained))
            for trained in (first, again, together(first, again))
        ]
        values[name] = [json_values(one) for one in apart]
        rows.append([name, *(difference_text(one, POINTS) for one in apart)])
    write_json(RESULTS / "minilm-trec-twice.json", {"command": command(), "versions": versions(), "from_all": values})
    write_text(RESULTS / "minilm-trec-twice.md", markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
