"""Every subset of MiniLM's layers, trained: table *subsets* of docs/results/protocol.md.

    python benchmarks/evidence_subsets.py SHARED DATA MODELS [--only minilm-trec] [--jobs 1]

Arguments as of evidence.py; recipes are in benchmarks/evidence/subsets/, of which every size is an oracle. Trainings
are kept in benchmarks/results/evidence/NAME-subsets/cells.json and never run twice. Beside them published.json keeps
what `layersift select` chooses of each size, with and without `--compat paper`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from layersift.commands.console import Console
from layersift.config.recipe import Recipe, read_recipe
from layersift.experiment.oracle import oracle
from layersift.files import write_json
from layersift.records.selection import Selection
from layersift.report.files import write_oracle
from places import enter_places, take_places

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "evidence"


def published(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Masks of each size by the published rule and by ours, as `layersift select` chooses them."""
    data = recipe.data
    words = [recipe.model.name, "--data", str(data.data), "--max-samples", str(recipe.select.max_samples)]
    words += ["--max-length", str(data.max_length)] if data.max_length else []
    found: dict[str, dict[str, str]] = {}
    for size in recipe.compare.sizes:
        for name, more in {"ours": [], "published": ["--compat", "paper"]}.items():
            file = Path(f"{name}-{size}.json")
            command = [
                sys.executable,
                "-m",
                "layersift",
                "select",
                *words,
                "--top-n",
                str(size),
                *more,
                "-o",
                str(file),
            ]
            subprocess.run(command, check=True)
            found.setdefault(str(size), {})[name] = Selection.load(file).mask
    return found


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
            found = oracle(recipe, size, jobs=arguments.jobs, reporter=console)
            write_oracle(found, Path(recipe.output) / f"of-{size}")
        write_json(Path(recipe.output) / "published.json", published(recipe))


if __name__ == "__main__":
    main()
