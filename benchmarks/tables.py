"""Tables of costs for docs/costs.md, from the files in benchmarks/results.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Rows = list[list[str]]


def read(name: str) -> dict[str, Any]:
    """A result file."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def table(rows: Rows) -> str:
    """Markdown; the first column is words, the others are figures."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def scoring() -> str:
    """Every side of scoring_cost.py, and how it compares with ours on as many samples."""
    found = read("scoring_cost")
    few = {"probe": "ours, few", "ours, few": "ours, few"}
    middle = {
        side: {what: statistics.median(run[what] for run in runs) for what in ("seconds", "bytes")}
        for side, runs in found["runs"].items()
    }
    rows = [["way", "seconds", "times ours", "memory above the model", "times ours"]]
    for side, cost in middle.items():
        own = middle[few.get(side, "ours")]
        memory = f"{cost['bytes'] / 2**20:,.0f} MiB"
        times = (f"{cost[what] / own[what]:.2f}" for what in ("seconds", "bytes"))
        seconds, bytes_ = times
        rows.append([side, f"{cost['seconds']:.1f}", seconds, memory, bytes_])
    return table(rows)


def training() -> str:
    """Every ratio of training_cost.py."""
    rows = [["", "time", "memory"]]
    for name, model in (("minilm", "MiniLM"), ("smollm2", "SmolLM2")):
        for pair, ratio in read(f"training_cost-{name}")["ratios"].items():
            spread = f"{ratio['time']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
            rows.append([f"{model}: {pair}", spread, f"{ratio['memory']:.2f}"])
    return table(rows)


def plans() -> str:
    """Every case of plan_accuracy.py."""
    rows = [["", "checkpointing", "FLOPs", "memory", "memory measured"]]
    for case in read("plan_accuracy")["cases"]:
        off = case["planned / measured"]
        rows.append(
            [
                f"{case['model'].partition('.')[0]}, {case['layers']}",
                "on" if case["checkpointing"] else "off",
                f"{off['flops']:.3f}",
                f"{off['memory']:.3f}",
                f"{case['memory']['measured'] / 2**20:,.0f} MiB",
            ]
        )
    return table(rows)


def calculators() -> str:
    """What each calculator of calculators.py is worth over all configurations."""
    rows = [["estimate of the memory", "median error", "worst error", "safe"]]
    for name, measures in read("calculators")["summary"].items():
        rows.append([name, *(f"{100 * measures[what]:.0f}%" for what in ("median", "worst", "safe"))])
    return table(rows)


def paper_size() -> str:
    """Every side of paper_size.py, and how it compares with ours."""
    found = read("paper_size-llama-2-7b")
    rows = [["LLaMA-2-7B's shape", "seconds", "times ours", "memory above the model", "times ours"]]
    for of, own in (("scoring", "ours"), ("training", "upper half")):
        middle = {
            side: {what: statistics.median(run[what] for run in runs) for what in ("seconds", "bytes")}
            for side, runs in found[of].items()
        }
        for side, cost in middle.items():
            seconds, memory = (f"{cost[what] / middle[own][what]:.2f}" for what in ("seconds", "bytes"))
            rows.append(
                [f"{of}: {side}", f"{cost['seconds']:.2f}", seconds, f"{cost['bytes'] / 2**20:,.0f} MiB", memory]
            )
    return table(rows)


if __name__ == "__main__":
    print("\n\n".join(make() for make in (scoring, training, plans, calculators, paper_size)))
