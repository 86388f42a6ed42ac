"""Every subset of MiniLM's layers, and some of MPNet's, trained: tables *subsets* and *large* of the protocol.

    python benchmarks/evidence_subsets.py SHARED DATA MODELS [--only minilm-trec] [--jobs 1]

Arguments as of evidence.py; recipes are in benchmarks/evidence/subsets/, of which every size is an oracle. Trainings
are kept in benchmarks/results/evidence/NAME-subsets/cells.json and never run twice; published.json keeps what
`layersift select` chooses, with and without `--compat paper`. Where a sample of the subsets is trained, with one seed,
all layers and what rules and token positions choose are trained with three.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from comparing import train_all
from layersift.commands.console import Console
from layersift.config.recipe import Recipe, read_recipe
from layersift.experiment.grid import open_grid
from layersift.experiment.oracle import oracle
from layersift.experiment.prepare import checked
from layersift.experiment.rates import choose_rates
from layersift.files import write_json
from layersift.records.runs import Cell
from layersift.records.selection import Selection
from layersift.report.write import write_oracle
from pages.subsets import DEFAULT, POSITIONS, TASKS
from places import enter_places, take_places

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "evidence"
SAMPLED = {"mpnet-trec": 40, "mpnet-sst2": 40}  # subsets, where there are too many to train
SEEDS = range(3)  # of the choices that are named, beside a sample with one


def published(recipe: Recipe, size: int) -> dict[str, str]:
    """Masks by the published rule and by ours, as `layersift select` chooses them."""
    data = recipe.data
    words = [sys.executable, "-m", "layersift", "select", recipe.model.name, "--data", str(data.data)]
    words += ["--max-samples", str(recipe.select.max_samples), "--top-n", str(size)]
    words += ["--max-length", str(data.max_length)] if data.max_length else []
    found = {}
    for name, more in {"ours": [], "published": ["--compat", "paper"]}.items():
        file = Path(f"{name}-{size}.json")
        subprocess.run([*words, *more, "-o", str(file)], check=True)
        found[name] = Selection.load(file).mask
        file.unlink()
    return found


def train_named(recipe: Recipe, size: int, named: set[str], jobs: int, console: Console) -> None:
    """All layers and the subsets that somebody chooses, with three seeds, at the rates that the oracle chose."""
    _, layers, prepared = checked(recipe, console)
    train = recipe.train
    with open_grid(recipe) as output:
        rates = choose_rates(recipe, [size, layers], layers, [train.method], prepared.encoder.kind, jobs, console)
        wanted = [
            Cell(mask, seed, replace(train, learning_rate=rates[train.method, mask.count("1")].chosen))
            for seed in SEEDS
            for mask in ["1" * layers, *sorted(named)]
        ]
        train_all(recipe, wanted, output, jobs, console, "what is chosen, more seeds")


def main() -> None:
    """Every recipe that is asked for."""
    recipes = {path.stem: path for path in sorted((HERE / "evidence" / "subsets").glob("*.yaml"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    take_places(parser)
    parser.add_argument("--only", nargs="+", choices=list(recipes), default=list(recipes))
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    enter_places(arguments, RESULTS)
    console = Console()
    for name in arguments.only:
        recipe = read_recipe(recipes[name], [], f"results/{name}-subsets")
        for size in recipe.compare.sizes:
            place = Path(recipe.output) / f"of-{size}"
            found = oracle(recipe, size, SAMPLED.get(name), arguments.jobs, console)
            write_oracle(found, place)
            masks = published(recipe, size)
            write_json(place / "published.json", masks)
            if name in SAMPLED:
                (task,) = (task for task in TASKS if task.place == f"{name}-subsets")
                named = {task.at_position(position, size) for position in (DEFAULT, *POSITIONS)}
                named |= {*masks.values(), *(placed.mask for placed in found.placed)}
                train_named(recipe, size, named, arguments.jobs, console)


if __name__ == "__main__":
    main()
