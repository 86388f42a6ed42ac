"""The tables of docs/results/protocol.md that are trained.

    python benchmarks/evidence.py SHARED DATA MODELS [--only minilm-docstrings] [--jobs 1] [--finished | --rows all cka
                                  [--layers 9] [--seeds 3]]

SHARED holds trec/, sst2/ and gsm8k/, DATA what `python benchmarks/evidence_tasks.py SHARED DATA` writes, MODELS what
`python benchmarks/evidence_models.py MODELS` fetches. Recipes are in benchmarks/evidence/. Every training is kept in
benchmarks/results/evidence/NAME/cells.json, so that nothing is run twice: start it again and it goes on. --finished
writes the tables of what there is, says what it lacks, and trains nothing; --rows trains those rows alone, of every
number of layers or of that of --layers, with the recipe's seeds or with more, for equal epochs and without looks on
the way, and then does the same. Of seeds beyond the recipe's the pages tell, the tables do not.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from comparing import comparison_of, tell, train_rows
from layersift.commands.console import Console
from layersift.config.recipe import read_recipe
from layersift.report.write import write_comparison
from places import enter_places, take_places

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "evidence"


def main() -> None:
    """Every recipe that is asked for."""
    recipes = {path.stem: path for path in sorted((HERE / "evidence").glob("*.yaml"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    take_places(parser)
    parser.add_argument("--only", nargs="+", choices=list(recipes), default=list(recipes))
    parser.add_argument("--jobs", type=int, default=1)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--finished", action="store_true")
    what.add_argument("--rows", nargs="+")
    parser.add_argument("--layers", nargs="+", type=int)
    parser.add_argument("--seeds", type=int)
    arguments = parser.parse_args()
    if (arguments.layers or arguments.seeds) and not arguments.rows:
        parser.error("--layers and --seeds go with --rows, which says what to train")
    enter_places(arguments, RESULTS)
    console = Console()
    for name in arguments.only:
        recipe = read_recipe(recipes[name], [], f"results/{name}")
        if arguments.rows:
            seeds = arguments.seeds or recipe.compare.seeds
            more = replace(recipe, compare=replace(recipe.compare, seeds=seeds))
            train_rows(more, arguments.rows, arguments.layers, arguments.jobs, console)
        comparison = comparison_of(recipe, arguments.jobs, console, arguments.finished or bool(arguments.rows))
        write_comparison(comparison, Path(recipe.output))
        tell(comparison, console)


if __name__ == "__main__":
    main()
