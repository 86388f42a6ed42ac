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

from layersift.config.fields import json_values
from layersift.experiment.choices import ALL, BASE
from layersift.experiment.judge import runs_of
from layersift.files import write_json, write_text
from layersift.provenance import command, versions
from layersift.report.tables import difference_text, markdown
from layersift.statistics.intervals import POINTS, difference
from trained import compared, row_name, together

RESULTS = Path(__file__).resolve().parent / "results" / "strategies"
TWICE = ("minilm-trec", "minilm-trec-again")


def main() -> None:
    """Every row that both have."""
    (choices, first), (others, again) = (compared(RESULTS / place) for place in TWICE)
    rows, values = [["layers", "from all, first", "again", "together"]], dict[str, Any]()
    for name, choice in choices.items():
        whole = row_name(replace(choice, name=ALL))
        if name in (whole, BASE) or name not in others:
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
