"""What differences can a table of the evidence pages see? From the spread of the comparisons that were made before.

    python benchmarks/evidence_power.py

Reads the trainings of benchmarks/strategies.py. For the difference of a way of training from all layers, paired by seed
and test row, the variance is parted into seeds, rows and what is left (two-way analysis of variance without
replication); from these follows the smallest difference that four of five 95% intervals would show, by the normal
approximation, for other numbers of seeds and rows. Results: benchmarks/results/evidence/power.json and, as a table,
.md.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from layersift.experiment.choices import ALL, LAST
from layersift.experiment.judge import runs_of
from layersift.files import write_json, write_text
from layersift.provenance import command, versions
from layersift.report.tables import markdown
from trained import compared

HERE = Path(__file__).resolve().parent
PILOTS = ("minilm-trec", "minilm-trec-again", "minilm-sst2", "vit-digits")
WAYS = (LAST, "cka", "freezing", "all, matched rank")
DESIGNS = ((5, 500), (10, 500), (10, 1000), (20, 1000))  # seeds, test rows
SEEN = 1.96 + 0.84  # standard errors


def components(apart: np.ndarray) -> tuple[float, float, float]:
    """Variances of seeds, of rows, and what is left, of paired differences (S, R)."""
    seeds, rows = apart.shape
    by_seed, by_row = apart.mean(axis=1), apart.mean(axis=0)
    left = float(((apart - by_seed[:, None] - by_row + apart.mean()) ** 2).sum() / ((seeds - 1) * (rows - 1)))
    return (
        max(0.0, float(by_seed.var(ddof=1)) - left / rows),
        max(0.0, float(by_row.var(ddof=1)) - left / seeds),
        left,
    )


def visible(parts: tuple[float, float, float], seeds: int, rows: int) -> float:
    """The smallest difference that four of five intervals show, in points."""
    of_seeds, of_rows, left = parts
    return 100 * SEEN * math.sqrt(of_seeds / seeds + of_rows / rows + left / (seeds * rows))


def main() -> None:
    """Every pilot, and the median over them and the ways."""
    rows = [["pilot", "way", "sd of seeds", *(f"{seeds} seeds, {count:,} rows" for seeds, count in DESIGNS)]]
    values: dict[str, Any] = {}
    every = []
    for pilot in PILOTS:
        choices, trained = compared(HERE / "results" / "strategies" / pilot)
        whole = runs_of(choices[ALL], trained)
        for way in WAYS:
            runs = runs_of(choices[way], trained)
            seeds = sorted(set(runs.outcomes) & set(whole.outcomes))
            parts = components(np.array([runs.outcomes[seed] - whole.outcomes[seed] for seed in seeds]))
            seen = [visible(parts, *design) for design in DESIGNS]
            every.append(seen)
            values[f"{pilot}, {way}"] = {"variances": parts, "visible": seen}
            rows.append([pilot, way, f"{100 * math.sqrt(parts[0]):.1f}", *(f"{one:.1f}" for one in seen)])
    middle = np.median(np.array(every), axis=0)
    rows.append(["median", "", "", *(f"{one:.1f}" for one in middle)])
    place = HERE / "results" / "evidence"
    write_json(place / "power.json", {"command": command(), "versions": versions(), "found": values})
    write_text(place / "power.md", markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
