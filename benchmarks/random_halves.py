"""Random halves of the layers against the last half, CKA's and all layers, each at the default rate for its number.

    python benchmarks/random_halves.py SHARED DATA MODELS [--only minilm-trec] [--jobs 2] [--finished]

Five halves are drawn for each task, without the last half and without CKA's. CKA chooses on the training rows. All
train as `layersift train` does by default, with three seeds, beside the trainings of all layers and of the last half
that `python benchmarks/default_rates.py SHARED DATA MODELS --defaults` keeps. Differences are paired over seeds and
test rows; the spread between the draws widens them. Every training is kept in
benchmarks/results/default_rates/PAIR/cells.json. The table is written to benchmarks/results/random_halves.json and
printed; --finished trains nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from comparing import train_all
from default_rates import ALL, HALF, PAIRS, RESULTS, SEEDS, Pair, default_cell, recipe_for
from half_of_the_layers import TASKS, runs_of, told
from layersift.commands.console import Console
from layersift.config.recipe import Recipe
from layersift.config.select import SelectSettings
from layersift.experiment.grid import finished, open_grid
from layersift.files import read_json, write_json
from layersift.provenance import made_by
from layersift.records.runs import Cell
from layersift.select.choose import select
from layersift.select.layers import draw_masks
from layersift.statistics.intervals import Interval, Runs, difference, mean_score
from layersift.task import Task
from pages.measured import over_tasks
from places import enter_places, pack_all, take_places

TARGET = RESULTS.parent / "random_halves.json"
TRIED = ("minilm-trec", "minilm-docstrings", "minilm-sst2", "mpnet-trec")
DRAWS = 5
HEADER = ["data", "model", "all layers", "last half", "CKA's half", "random halves", "the five"]
HEADER += ["last minus random", "CKA's minus random", "random minus all"]


def choose_by_cka(recipe: Recipe, pair: Pair) -> str:
    """The half that CKA chooses on the training rows."""
    task = Task.open(recipe.model, recipe.data)
    settings = SelectSettings(top_n=pair.layers // 2)
    return select(task.load(0), task.sample(settings), settings).mask


def draw_halves(pair: Pair, without: set[str]) -> list[str]:
    """Five halves at random, none of ``without``."""
    return list(draw_masks(pair.layers, pair.layers // 2, DRAWS, 0, without))


def cell_of(recipe: Recipe, pair: Pair, mask: str, seed: int) -> Cell:
    """A half's training at the default rate for so many layers."""
    return replace(default_cell(recipe, pair, HALF, seed), mask=mask)


def runs_of_masks(recipe: Recipe, pair: Pair, masks: list[str]) -> Runs | None:
    """The masks' scores and right answers by seed, means over several; None where one is not trained."""
    each = []
    for mask in masks:
        cells = [cell_of(recipe, pair, mask, seed) for seed in SEEDS]
        if mask == "1" * pair.layers:
            cells = [default_cell(recipe, pair, ALL, seed) for seed in SEEDS]
        done = finished(Path(recipe.output), cells, recipe.train)
        if len(done) < len(SEEDS):
            return None
        each.append(runs_of({cell.seed: result for cell, result in done.items()}, pair))
    if len(each) == 1:
        return each[0]
    scores = {seed: float(np.mean([runs.scores[seed] for runs in each])) for seed in SEEDS}
    outcomes = {seed: np.mean([runs.outcomes[seed] for runs in each], axis=0) for seed in SEEDS}
    draws = tuple(float(np.mean(list(runs.scores.values()))) for runs in each)
    return Runs(scores, outcomes, True, draws=draws, asked=len(SEEDS))


def compared(ours: Runs, theirs: Runs) -> Interval:
    """The paired difference."""
    apart = difference(ours, theirs)
    assert apart is not None
    return apart


def edges(interval: Interval) -> dict[str, Any]:
    """As JSON values."""
    return {"value": interval.value, "low": interval.low, "high": interval.high, "over": interval.over}


def main() -> None:
    """Train what is asked for and lacks, and write the table of what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    take_places(parser)
    parser.add_argument("--only", nargs="+", choices=TRIED, default=list(TRIED))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--finished", action="store_true")
    arguments = parser.parse_args()
    enter_places(arguments, RESULTS)
    console = Console()
    known: dict[str, Any] = read_json(TARGET, "the table")["tasks"] if TARGET.exists() else {}
    for name in arguments.only:
        pair = PAIRS[name]
        recipe = recipe_for(name, pair)
        cka = known[name]["masks"]["cka"] if name in known else choose_by_cka(recipe, pair)
        masks = {"cka": cka, "last": "0" * (pair.layers // 2) + "1" * (pair.layers // 2)}
        drawn = draw_halves(pair, set(masks.values()))
        if not arguments.finished:
            with open_grid(recipe) as output:
                cells = [cell_of(recipe, pair, mask, seed) for seed in SEEDS for mask in (*drawn, cka, masks["last"])]
                cells += [default_cell(recipe, pair, ALL, seed) for seed in SEEDS]
                train_all(recipe, list(dict.fromkeys(cells)), output, arguments.jobs, console, "random halves")
            pack_all(RESULTS)
        every = runs_of_masks(recipe, pair, ["1" * pair.layers])
        last, chosen = (runs_of_masks(recipe, pair, [masks[which]]) for which in ("last", "cka"))
        chance = runs_of_masks(recipe, pair, drawn)
        if every is None or last is None or chosen is None or chance is None:
            console.say(f"{name}: not trained with {len(SEEDS)} seeds")
            continue
        apart = {"last": compared(last, chance), "cka": compared(chosen, chance), "random": compared(chance, every)}
        scores = {"all": every, "last": last, "cka": chosen, "random": chance}
        known[name] = {
            "masks": {**masks, "random": drawn},
            "scores": {which: mean_score(runs).value for which, runs in scores.items()},
            "draws": list(chance.draws),
            "from_random": {which: edges(apart[which]) for which in ("last", "cka")},
            "random_from_all": edges(apart["random"]),
        }
    write_json(TARGET, {**made_by(), "seeds": len(SEEDS), "tasks": known})
    console.say(table_of(known))


def table_of(known: dict[str, Any]) -> str:
    """A row for each task, and the means over them."""
    lines = [HEADER, ["---"] * len(HEADER)]
    over: dict[str, list[Interval]] = {"last": [], "cka": [], "random": []}
    for name, of in known.items():
        pair, scores = PAIRS[name], {which: f"{100 * value:.1f}" for which, value in of["scores"].items()}
        apart = {**of["from_random"], "random": of["random_from_all"]}
        intervals = {which: Interval(**values) for which, values in apart.items()}
        for which, one in intervals.items():
            over[which].append(one)
        five = ", ".join(f"{100 * score:.1f}" for score in sorted(of["draws"]))
        rows = f"{TASKS[pair.task]}, {pair.train} rows"
        cka = f"{scores['cka']} ({of['masks']['cka']})"
        said = [told(intervals[which]) for which in ("last", "cka", "random")]
        lines.append([rows, pair.model, scores["all"], scores["last"], cka, scores["random"], five, *said])
    if len(known) > 1:
        means = [over_tasks(over[which]) for which in ("last", "cka", "random")]
        lines.append(["mean over tasks", "", "", "", "", "", "", *(told(mean) if mean else "" for mean in means)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
