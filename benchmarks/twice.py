"""TREC trained twice with the same seeds, on a CPU and on a GPU: what both together say of each way of training.

    python benchmarks/twice.py

Reads the cells that benchmarks/strategies.py left of minilm-trec and minilm-trec-again. The same seed on another
machine is another training, since rounding differs from the first step on; so both count as runs of their own.
Results: benchmarks/results/strategies/minilm-trec-twice.json and, as a table, .md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from layersift.config.fields import json_values
from layersift.files import read_json, write_json, write_text
from layersift.provenance import command, versions
from layersift.records.result import Result
from layersift.report.markdown import markdown
from layersift.report.tables import difference_text
from layersift.statistics.intervals import Runs, difference
from layersift.statistics.verdicts import POINTS, limits_of

RESULTS = Path(__file__).resolve().parent / "results" / "strategies"
TWICE = ("minilm-trec", "minilm-trec-again")
SEEDS = 5
Run = tuple[str, int]  # of TWICE, and the seed


def trainings_of(cells: Path, choice: dict[str, Any]) -> dict[int, Result]:
    """The trainings behind a row of a comparison, by the seed."""
    keys = ("rank", "strategy", "epochs", "target_modules", "learning_rate")
    found = [Result.load(path) for path in sorted(cells.glob("*-test-*.json"))]
    return {
        one.cell.seed: one
        for one in found
        if [one.cell.mask] == choice["masks"] and all(getattr(one.cell, key) == choice.get(key, "") for key in keys)
    }


def named(place: str) -> dict[str, dict[int, Result]]:
    """The trainings behind each row of a comparison, by the row's name and the seed."""
    found: dict[str, dict[int, Result]] = {}
    for row in read_json(RESULTS / place / "compare.json", "a comparison")["rows"]:
        choice = row["choice"]
        name = choice["name"] + ("" if choice["budget"] is None else f", for {choice['budget']:g} of the operations")
        found[name] = trainings_of(RESULTS / place / "cells", choice)
    return found


def runs(results: dict[Run, Result]) -> Runs:
    """Scores and outcomes by run."""
    numbers = {run: TWICE.index(run[0]) * SEEDS + run[1] for run in results}
    return Runs(
        scores={numbers[run]: result.score or 0.0 for run, result in results.items()},
        outcomes={numbers[run]: np.asarray(result.outcomes) for run, result in results.items()},
        averages=True,
        asked=len(TWICE) * SEEDS,
        limits=limits_of("accuracy"),
    )


def main() -> None:
    """Every row that both have."""
    both = {place: named(place) for place in TWICE}
    rows, values = [["layers", "from all, first", "again", "together"]], dict[str, Any]()
    for name in both[TWICE[0]]:
        whole = "all" + (name[name.index(", for ") :] if ", for " in name else "")
        if name in (whole, "untouched") or name not in both[TWICE[1]]:
            continue
        told = []
        for places in ([TWICE[0]], [TWICE[1]], list(TWICE)):
            mine, others = (
                runs({(place, seed): one for place in places for seed, one in both[place][which].items()})
                for which in (name, whole)
            )
            apart = difference(mine, others)
            told.append(difference_text(apart, POINTS))
            values.setdefault(name, []).append(json_values(apart))
        rows.append([name, *told])
    write_json(RESULTS / "minilm-trec-twice.json", {"command": command(), "versions": versions(), "from_all": values})
    write_text(RESULTS / "minilm-trec-twice.md", markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
