"""How often 95% intervals hold the task's figure, and how often equal choices are called different.

    python benchmarks/interval_coverage.py

Two choices of layers are simulated that are equally good on the task: a sample is right or wrong (or has a loss) by its
own difficulty, by the seed of the training, by the choice, which suits some samples better than others, and by chance.
Test samples and seeds are drawn anew in every trial. `seeds alone` is Student's interval over the seeds, as layersift
took it before; `crossed` is what it takes now (layersift.statistics.intervals).
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from layersift.files import write_json
from layersift.provenance import versions
from layersift.statistics.intervals import Runs, difference, mean_score

RESULT = Path(__file__).parent / "results" / "interval_coverage.json"
TRIALS = 2000
# Standard deviations, in units of a logit or of a nat: of samples' difficulty, of what a sample makes of a choice, and
# of what a seed makes of a sample.
DIFFICULTY, TASTE, CHANCE = 2.0, 0.8, 1.0
# Of a seed. Its share in the variance of a mean is from a thousandth to some hundred times that of the rows.
SEEDS = (0.05, 0.2, 0.8)
CASES = list(itertools.product(("accuracy", "loss"), SEEDS, (2, 3, 5, 10), (200, 2000)))
SHIFT = 3.0  # of the logits: nine of ten are right


def outcomes(rng: np.random.Generator, kind: str, spread: float, seeds: int, samples: int) -> list[np.ndarray]:
    """Of two equal choices, (seeds, samples) each."""
    difficulty = rng.normal(0, DIFFICULTY, samples)
    found = []
    for _ in range(2):
        taste, seed = rng.normal(0, TASTE, samples), rng.normal(0, spread, (seeds, 1))
        value = SHIFT + difficulty + taste + seed + rng.normal(0, CHANCE, (seeds, samples))
        found.append((value > 0).astype(float) if kind == "accuracy" else np.logaddexp(0, -value))
    return found


def truth(kind: str, spread: float) -> float:
    """The figure over all samples and seeds."""
    total = math.sqrt(DIFFICULTY**2 + TASTE**2 + spread**2 + CHANCE**2)
    if kind == "accuracy":
        return float(stats.norm.cdf(SHIFT / total))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(np.average(np.logaddexp(0, -(SHIFT + total * nodes)), weights=weights))


def over_seeds(values: np.ndarray) -> tuple[float, float]:
    """Student's interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def case(kind: str, spread: float, seeds: int, samples: int) -> dict[str, Any]:
    """Shares of the trials of one size."""
    rng, wanted = np.random.default_rng(0), truth(kind, spread)
    held = {"seeds alone": 0, "crossed": 0}
    called = {"seeds alone": 0, "crossed": 0}
    for _ in range(TRIALS):
        ours, theirs = outcomes(rng, kind, spread, seeds, samples)
        a, b = (Runs(dict(enumerate(o.mean(1))), dict(enumerate(o)), True, asked=seeds) for o in (ours, theirs))
        score, apart = mean_score(a), difference(a, b)
        assert apart is not None
        assert score.low is not None
        assert score.high is not None
        low, high = over_seeds(ours.mean(1))
        held["seeds alone"] += low <= wanted <= high
        held["crossed"] += score.low <= wanted <= score.high
        low, high = over_seeds(ours.mean(1) - theirs.mean(1))
        called["seeds alone"] += not low <= 0 <= high
        called["crossed"] += not apart.holds_zero
    return {
        "metric": kind,
        "standard deviation of seeds": spread,
        "seeds": seeds,
        "samples": samples,
        "of 100 intervals of a score hold the task's": {k: round(100 * v / TRIALS, 1) for k, v in held.items()},
        "of 100 equal choices are called different": {k: round(100 * v / TRIALS, 1) for k, v in called.items()},
    }


def main() -> None:
    """Every case."""
    found = []
    for of in CASES:
        found.append(case(*of))
        print(*found[-1].values(), flush=True)
    made = {"command": "python benchmarks/interval_coverage.py", "trials": TRIALS, "versions": versions()}
    write_json(RESULT, {**made, "cases": found})


if __name__ == "__main__":
    main()
