"""The last half of the layers against all of them, each trained as `layersift train` does by default: README's chart.

    python benchmarks/half_of_the_layers.py

It reads the trainings that `python benchmarks/default_rates.py SHARED DATA MODELS --defaults` keeps. It trains nothing
and writes docs/charts/half.svg and benchmarks/results/half_of_the_layers.md. Differences are paired over test rows and
seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from default_rates import LINEAR, PAIRS, RESULTS, SEEDS, Pair
from layersift.config.defaults import EPOCHS, Trained, default_rate
from layersift.config.train import TrainSettings
from layersift.draw import BLUE, altair, rows_of
from layersift.files import write_text
from layersift.records.runs import Result
from layersift.statistics.intervals import Interval, Runs, difference, mean_score
from packed import PACKED, packed_cells

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = {"MiniLM": 384, "MPNet": 768, "SmolLM2.gguf": 576, "Gemma3.gguf": 640}
TASKS = {"trec": "TREC", "docstrings": "docstrings", "sst2": "SST-2"}
HEADER = ["data", "model", "training rows", "test rows", "all layers", "last half", "difference"]
INK = "#7d8590"  # read on white and on black


def trained_by_default(pair: Pair, results: list[Result], adapted: int) -> dict[int, Result]:
    """By seed, the trainings of so many last layers at the default rate, with PEFT's default modules; the longest."""
    trained = Trained("classification", WIDTHS[pair.model], adapted, pair.layers)
    rate = default_rate(TrainSettings(), trained)
    mask = "0" * (pair.layers - adapted) + "1" * adapted
    of = [
        result
        for result in results
        if result.cell.mask == mask
        and result.cell.train.learning_rate == rate
        and result.cell.train.target_modules is None
    ]
    longest = max((result.cell.train.epochs or EPOCHS for result in of), default=0)
    return {result.cell.seed: result for result in of if (result.cell.train.epochs or EPOCHS) == longest}


def runs_of(results: dict[int, Result], pair: Pair) -> Runs:
    """Their right answers on the test rows, which come first."""
    outcomes = {seed: np.array(result.outcomes[: pair.test]) for seed, result in results.items()}
    scores = {seed: float(of.mean()) for seed, of in outcomes.items()}
    for seed, result in results.items():
        if abs(scores[seed] - (result.metrics["accuracy test"] or 0)) > 1e-9:
            raise SystemExit(f"{pair.task}, seed {seed}: the outcomes are not those of the test rows")
    return Runs(scores, outcomes, True, asked=len(pair.default_seeds))


def told(interval: Interval) -> str:
    """In points, with its interval."""
    return f"{100 * interval.value:+.1f} ({100 * (interval.low or 0):+.1f} to {100 * (interval.high or 0):+.1f})"


def chart(rows: list[dict[str, Any]]) -> Any:
    """A point and its interval for each task; a line where both are level."""
    alt = altair()
    base = alt.Chart(rows_of(rows)).encode(y=alt.Y("task:N", sort=None, title=None, axis=alt.Axis(labelLimit=260)))
    bar = base.mark_rule(color=BLUE, strokeWidth=3).encode(
        x=alt.X("low:Q", title=TITLE, axis=alt.Axis(labelFlush=False)), x2="high:Q"
    )
    point = base.mark_point(color=BLUE, filled=True, size=110, opacity=1).encode(x="difference:Q")
    level = alt.Chart(rows_of([{"at": 0}])).mark_rule(color=INK, strokeDash=[4, 4]).encode(x="at:Q")
    drawn = alt.layer(level, bar, point).properties(
        width=420, height=alt.Step(30), padding={"left": 50, "right": 10, "bottom": 6}
    )
    return drawn.configure(background="transparent").configure_view(stroke=None).configure_axis(
        labelColor=INK, titleColor=INK, gridOpacity=0.25, gridColor=INK, domainColor=INK, tickColor=INK,
        labelFontSize=13, titleFontSize=13, titleFontWeight="normal",
    )  # fmt: skip


TITLE = "test accuracy of the last half minus all layers, points"


def main() -> None:
    """The table and the chart, of the pairs of which both are trained."""
    import vl_convert

    lines, drawn = [HEADER, ["---"] * len(HEADER)], []
    for name, pair in PAIRS.items():
        if pair.task not in TASKS or LINEAR in pair.variants or not (RESULTS / name / PACKED).exists():
            continue
        results = [Result.from_json(v, file) for file, v in packed_cells(RESULTS / name).items()]
        every, half = (trained_by_default(pair, results, n) for n in (pair.layers, pair.layers // 2))
        if min(len(every), len(half)) < len(SEEDS):
            continue
        ours, theirs = runs_of(half, pair), runs_of(every, pair)
        apart, task = difference(ours, theirs), TASKS[pair.task]
        if apart is None or apart.low is None or apart.high is None:
            raise SystemExit(f"{name}: no seed of both variants")
        scores = [f"{100 * mean_score(runs).value:.1f}" for runs in (theirs, ours)]
        lines.append([task, pair.model, str(pair.train), str(pair.test), *scores, told(apart)])
        label = f"{pair.model}, {pair.train} rows of {task}"
        drawn.append({"task": label, "difference": 100 * apart.value, "low": 100 * apart.low, "high": 100 * apart.high})
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    print(table)
    write_text(ROOT / "benchmarks" / "results" / "half_of_the_layers.md", table)
    write_text(ROOT / "docs" / "charts" / "half.svg", vl_convert.vegalite_to_svg(chart(drawn).to_json()))


if __name__ == "__main__":
    main()
