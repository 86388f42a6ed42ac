"""Every subset of MiniLM's layers, and some of MPNet's, trained: tables *subsets* and *large* of the protocol.

    python benchmarks/evidence_subsets.py SHARED DATA MODELS [--only minilm-trec] [--jobs 1]

Arguments as of evidence.py; recipes are in benchmarks/evidence/subsets/, of which every size is an oracle. Trainings
are kept in benchmarks/results/evidence/NAME-subsets/cells.json and never run twice. Where all subsets are trained,
published.json keeps what `layersift select` chooses, with and without `--compat paper`; where a sample of them is,
with one seed, all layers and the last half are trained with four more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from comparing import train_all
from layersift.commands.console import Console
from layersift.config.recipe import Recipe, read_recipe
from layersift.experiment.grid import open_grid
from layersift.experiment.oracle import oracle
from layersift.experiment.prepare import checked
from layersift.experiment.rates import choose_rates
from layersift.files import write_json
from layersift.records.result import Cell
from layersift.records.selection import Selection
from layersift.report.files import write_oracle
from places import enter_places, take_places

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "evidence"
SAMPLED = {"mpnet-trec": 40}  # subsets, where there are too many to train
MORE_SEEDS = range(1, 5)


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


def more_seeds(recipe: Recipe, size: int, jobs: int, console: Console) -> None:
    """All layers and the last ones with further seeds, at the rates that the oracle chose."""
    layers, prepared = checked(recipe, console)
    train = recipe.train
    with open_grid(recipe) as output:
        rates = choose_rates(recipe, [size, layers], layers, [train.method], prepared.encoder.kind, jobs, console)
        wanted = [
            Cell(
                "0" * (layers - n) + "1" * n, seed, train.method, rates[train.method, n].chosen, train.rank, train.alpha
            )
            for seed in MORE_SEEDS
            for n in (layers, size)
        ]
        train_all(recipe, wanted, output, jobs, console, "all and the last, more seeds")


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
            write_oracle(oracle(recipe, size, SAMPLED.get(name), arguments.jobs, console), place)
            if name in SAMPLED:
                more_seeds(recipe, size, arguments.jobs, console)
            else:
                write_json(place / "published.json", published(recipe, size))


if __name__ == "__main__":
    main()
