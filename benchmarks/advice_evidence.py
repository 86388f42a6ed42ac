"""What `layersift advise` says of the risk of each kind of variant: src/layersift/advise/evidence.json.

    python benchmarks/advice_evidence.py

It trains nothing. Classification: what `python benchmarks/default_rates.py SHARED DATA MODELS` keeps, each variant at
its own rate by the rule: the last half by --defaults, the others by --rule (three epochs); the mean over tasks of the
differences from all layers, with its interval over tasks. Decoders: the comparison smollm2-gsm8k-tuned of
benchmarks/results/strategies, whose rows have one learning rate. Commit what it writes; tests/advise/test_advise.py
holds docs/advise.md against it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from default_rates import ALL, FOUR, FREEZING, HALF, HALF_RANK, PAIRS, RESULTS, SEEDS, Pair, Variant
from half_of_the_layers import WIDTHS, runs_of, trained_by_default
from layersift.advise import candidates
from layersift.config.defaults import Trained, default_rate
from layersift.config.train import TrainSettings
from layersift.files import read_json, write_json
from layersift.records.runs import Result
from layersift.statistics.intervals import Interval, difference
from packed import PACKED, packed_cells
from pages.measured import over_tasks

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "src" / "layersift" / "advise" / "evidence.json"
DECODER = ROOT / "benchmarks" / "results" / "strategies" / "smollm2-gsm8k-tuned" / "compare.json"
FEWEST_TASKS = 3  # with two, an interval over tasks says nothing
RATES, OLDER = "docs/learning-rates.md", "docs/results/older-tables.md"
KINDS = {candidates.LOWER_RANK: HALF_RANK, candidates.HALF: HALF, candidates.FREEZING: FREEZING}
ROWS = {candidates.LOWER_RANK: "all, matched rank", candidates.HALF: "last", candidates.FREEZING: "freezing"}


def by_the_rule(pair: Pair, results: list[Result], variant: Variant) -> dict[int, Result]:
    """By seed, a variant's trainings at the rule's rate, for the grid's epochs."""
    count = max(1, round(variant.fraction * pair.layers))
    settings = TrainSettings(rank=variant.rank, alpha=variant.alpha, strategy=variant.strategy)
    rate = default_rate(settings, Trained("classification", WIDTHS[pair.model], count, pair.layers))
    alike = [
        r
        for r in results
        if r.cell.mask == "0" * (pair.layers - count) + "1" * count
        and (r.cell.train.rank, r.cell.train.strategy) == (settings.rank, settings.strategy)
        and (r.cell.train.learning_rate, r.cell.train.epochs) == (rate, pair.epochs)
        and r.cell.train.target_modules is None
    ]
    return {r.cell.seed: r for r in alike if r.cell.seed in SEEDS}


def differences() -> dict[str, dict[str, Interval]]:
    """From all layers, by kind and pair; of pairs of which both are trained with every seed."""
    apart: dict[str, dict[str, Interval]] = {kind: {} for kind in KINDS}
    for name, pair in PAIRS.items():
        if not set(FOUR) <= set(pair.variants) or not (RESULTS / name / PACKED).exists():
            continue
        results = [Result.from_json(v, file) for file, v in packed_cells(RESULTS / name).items()]
        for kind, variant in KINDS.items():
            if variant is HALF:
                ours, theirs = (trained_by_default(pair, results, n) for n in (pair.layers // 2, pair.layers))
            else:
                ours, theirs = (by_the_rule(pair, results, of) for of in (variant, ALL))
            if min(len(ours), len(theirs)) < len(SEEDS):
                print(f"{kind}, {name}: not trained with {len(SEEDS)} seeds")
                continue
            one = difference(runs_of(ours, pair), runs_of(theirs, pair))
            assert one is not None
            apart[kind][name] = one
    return apart


def entry(found: Interval, worst: float, tasks: int, seeds: int, page: str) -> dict[str, Any]:
    """As the package reads it."""
    edges = {"value": found.value, "low": found.low, "high": found.high, "worst": worst}
    return {name: None if v is None else round(v, 6) for name, v in edges.items()} | {
        "tasks": tasks,
        "seeds": seeds,
        "page": page,
    }


def main() -> None:
    """Write the file, and print what it rests on."""
    classification = {}
    for kind, of in differences().items():
        for name, one in of.items():
            print(
                f"{kind}, {name}: {100 * one.value:+.1f} ({100 * (one.low or 0):+.1f} to {100 * (one.high or 0):+.1f})"
            )
        if len(of) >= FEWEST_TASKS and (over := over_tasks(list(of.values()))) is not None:
            worst = min(one.value for one in of.values())
            classification[kind] = entry(over, worst, len(of), len(SEEDS), RATES)
    compared = read_json(DECODER, "a comparison")
    rows = {row["choice"]["name"]: row["from_all"] for row in compared["rows"] if row["choice"]["budget"] is None}
    seeds = len(compared["seeds"])
    writing = {
        kind: entry(Interval(**_edges(rows[name])), rows[name]["value"], 1, seeds, OLDER) for kind, name in ROWS.items()
    }
    write_json(
        TARGET, {"made by": "benchmarks/advice_evidence.py", "classification": classification, "writing": writing}
    )
    print(json.dumps({"classification": classification, "writing": writing}, indent=1))


def _edges(values: dict[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in ("value", "low", "high", "over")}


if __name__ == "__main__":
    main()
