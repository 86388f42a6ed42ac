"""What `layersift compare --race` saves and how often it errs: replayed comparisons, and simulated ones.

    python benchmarks/racing.py [--simulations 2000]

It trains nothing. Replays: the committed comparisons of benchmarks/results with ten seeds, read seed after seed in 20
orders; a verdict is better, worse or not significant against all layers (random choices where there are some), with
the seeds at which the row stopped and with all ten. FLOPs are shares of the comparison's trainings by the plan.
Simulations: rows whose difference from all layers and spreads over seeds and test rows are drawn; a stop is wrong
where all seeds would have given another verdict. Written to benchmarks/results/racing.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from layersift.experiment.choices import ALL, RANDOM, Choice
from layersift.experiment.judge import Trained, runs_of
from layersift.experiment.race import WRONG, chance_of_another, race
from layersift.files import write_json
from layersift.provenance import made_by
from layersift.records.runs import Cell, Result
from layersift.statistics.intervals import Runs, difference
from pages.measured import TASKS, Task

TARGET = Path(__file__).resolve().parent / "results" / "racing.json"
REPLAYED = ("TREC", "docstrings", "steps", "BBC")
ORDERS, SEEDS = 20, 10
TRUE, SPREADS, ROWS = (0.0, 0.005, 0.01, 0.02, 0.05), (0.003, 0.01, 0.02), (500, 1000)


@dataclass
class Count:
    """Of rows: stopped early, and of those with another verdict than all seeds give."""

    rows: int = 0
    stopped: int = 0
    wrong: int = 0
    seeds: float = 0.0
    verdicts: dict[str, int] = field(default_factory=dict)

    def add(self, stopped: int, seeds: int, same: bool) -> None:
        """A row that stopped after so many of the seeds."""
        self.rows += 1
        self.stopped += stopped < seeds
        self.wrong += not same
        self.seeds += stopped / seeds

    def to_json(self) -> dict[str, Any]:
        """Shares of the rows."""
        shares = {"stopped_early": self.stopped, "other_verdict": self.wrong, "seeds_trained": self.seeds}
        return {"rows": self.rows, **{name: value / self.rows for name, value in shares.items()}}


def word(runs: Runs, reference: Runs) -> str:
    """The verdict of a row against another."""
    apart = difference(runs, reference)
    if apart is None or apart.holds_zero:
        return "not significant"
    return "higher" if apart.value > 0 else "lower"


def verdicts(choice: Choice, choices: Sequence[Choice], trained: Trained) -> tuple[str, ...]:
    """Against all layers and random ones of its table."""
    peers = [c for c in choices if c.table == choice.table and c.name in (ALL, RANDOM) and c.masks != choice.masks]
    return tuple(word(runs_of(choice, trained), runs_of(peer, trained)) for peer in peers)


def replay(task: Task, order: Sequence[int], count: Count) -> tuple[float, float]:
    """One race over the kept trainings: FLOPs that it takes, and those of the whole comparison."""
    choices, kept = list(task.choices.values()), task.trained

    def train(some: Sequence[Choice], seed: int) -> tuple[Mapping[Cell, Result], Mapping[Cell, str]]:
        cells = [cell for choice in some for cell in choice.cells([seed])]
        return {cell: kept.results[cell] for cell in cells if cell in kept.results}, {}

    raced, whole = race(choices, order, train), Trained(tuple(order), kept.results, {})
    spent = total = 0.0
    done: set[Cell] = set()
    for choice in choices:
        price = choice.flops or 0.0
        new = [cell for cell in choice.cells(order) if cell not in done]  # rows of the same layers train once
        done |= set(new)
        total += price * len(new)
        spent += price * sum(cell in raced.results for cell in new)
        if choice.trained and choice.name not in (ALL, RANDOM):
            same = verdicts(choice, choices, raced) == verdicts(choice, choices, whole)
            count.add(raced.settled.get(choice.key, len(raced.seeds)), len(order), same)
    return spent, total


def simulate(rng: np.random.Generator, true: float, spread: float, rows: int, count: Count) -> None:
    """One row against all layers: right answers by seed and row, with a seed's own effect on both."""
    hard = rng.beta(4, 1, rows)
    scores: dict[str, dict[int, np.ndarray]] = {"row": {}, "all": {}}
    for seed in range(SEEDS):
        for name, of in scores.items():
            chance = np.clip(hard + rng.normal(0, spread) - (true if name == "row" else 0.0), 0, 1)
            of[seed] = (rng.random(rows) < chance).astype(float)

    def runs(name: str, seeds: int) -> Runs:
        of = {seed: scores[name][seed] for seed in range(seeds)}
        return Runs({seed: float(o.mean()) for seed, o in of.items()}, of, True, asked=SEEDS, limits=(0.0, 1.0))

    common = math.sqrt(2 * (spread**2 + float(np.mean(hard * (1 - hard))) / rows))
    stopped = SEEDS
    for seeds in range(3, SEEDS):
        if chance_of_another(runs("row", seeds), runs("all", seeds), SEEDS, common) <= WRONG:
            stopped = seeds
            break
    same = word(runs("row", stopped), runs("all", stopped)) == word(runs("row", SEEDS), runs("all", SEEDS))
    count.add(stopped, SEEDS, same)


def main() -> None:
    """Print and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    times = parser.parse_args().simulations
    replays = {}
    for task in (task for task in TASKS if task.name in REPLAYED):
        count, shares = Count(), []
        for number in range(ORDERS):
            order = np.random.default_rng(number).permutation(task.trained.seeds).tolist()
            spent, total = replay(task, order, count)
            shares.append(spent / total)
        replays[task.name] = {"flops": float(np.mean(shares)), **count.to_json()}
        print(task.name, replays[task.name])
    simulated = []
    every = [(true, spread, rows) for true in TRUE for spread in SPREADS for rows in ROWS]
    for place, (true, spread, rows) in enumerate(every):
        rng, count = np.random.default_rng(place), Count()
        for _ in range(max(1, times // len(every))):
            simulate(rng, true, spread, rows, count)
        simulated.append({"worse_by": true, "spread_of_seeds": spread, "test_rows": rows, **count.to_json()})
        print(simulated[-1])
    over = {
        name: float(np.mean([one[name] for one in simulated]))
        for name in ("stopped_early", "other_verdict", "seeds_trained")
    }
    print(over)
    write_json(TARGET, {**made_by(), "replayed": replays, "simulated": simulated, "over_simulations": over})


if __name__ == "__main__":
    main()
