"""Half of the layers by size of data, rank and length: tables *curves* and *conditions* of docs/results/protocol.md.

    python benchmarks/evidence_conditions.py SHARED DATA MODELS [--only minilm-trec] [--rows 128 256] [--jobs 1]

Arguments as of evidence.py; recipes are in benchmarks/evidence/conditions/. For each number of training rows all
layers, the last half and CKA's half are trained; at the recipe's own number also at other ranks and for half and
twice the epochs. A rate is chosen for each of these conditions, on rows held back. Trainings are kept in
benchmarks/results/evidence/NAME-conditions/cells.json and never run twice; conditions.json there says what they are.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from comparing import train_all
from layersift.commands.console import Console
from layersift.config.fields import json_values
from layersift.config.quantities import mask_of
from layersift.config.recipe import Recipe, read_recipe
from layersift.experiment.choices import ALL, LAST, Choice
from layersift.experiment.grid import open_grid
from layersift.experiment.prepare import checked, scoring_of, sizes_of
from layersift.experiment.rates import choose_rates, tune, tuning_masks
from layersift.files import read_json, write_json
from layersift.provenance import made_by
from places import enter_places, take_places

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "evidence"
ROWS = (128, 256, 512, 1024)
RANKS, LENGTHS = (2, 32), (0.5, 2.0)  # besides the recipe's rank and epochs


def varied(recipe: Recipe, choice: Choice) -> dict[str, Choice]:
    """A choice at other ranks, alpha always twice the rank as in the recipe, and for other numbers of epochs."""
    train = recipe.train
    ranks = {f"rank {rank}": choice.with_settings(rank=rank, alpha=rank * train.alpha / train.rank) for rank in RANKS}
    return ranks | {
        f"{share:g} of the epochs": choice.with_settings(epochs=share * train.num_epochs) for share in LENGTHS
    }


def train_rows(recipe: Recipe, rows: int, jobs: int, console: Console) -> dict[str, list[Choice]]:
    """The choices of every condition that has so many rows, their trainings made."""
    base, few = recipe.train.max_samples, replace(recipe.train, max_samples=rows)
    recipe = replace(recipe, train=few, output=f"{recipe.output}/rows-{rows}")
    _, layers, prepared = checked(recipe, console)
    half, train = sizes_of(recipe, layers)[0], recipe.train
    with open_grid(recipe) as output:
        scoring = scoring_of(recipe, prepared, [half], output, console)
        masks = {one.scores.criterion: mask_of(one.layers, layers) for one in scoring.scored}
        chosen = [
            Choice.of(name, mask.count("1"), [mask], train)
            for name, mask in {ALL: "1" * layers, LAST: masks["last"], "cka": masks["cka"]}.items()
        ]
        rows_of = {mask for choice in chosen for mask in choice.masks}
        rates = choose_rates(recipe, [half, layers], layers, [train.method], scoring.kind, jobs, console, rows_of)
        found = {f"{rows} rows": [c.with_settings(learning_rate=rates[train.method, c.size].chosen) for c in chosen]}
        if rows == base:
            judged = tuning_masks([half], layers, recipe.seed, rows_of)[half]
            for choice in chosen[:2]:
                for condition, other in varied(recipe, choice).items():
                    mask = choice.masks[0] if choice.name == ALL else judged
                    cell = replace(other.variants[0].cell(recipe.seed, "validation"), mask=mask)
                    rate = tune(recipe, {f"{choice.name}, {condition}": cell}, scoring.kind, jobs, console)
                    (of,) = rate.values()
                    found.setdefault(condition, []).append(other.with_settings(learning_rate=of.chosen))
        every = [choice for some in found.values() for choice in some]
        wanted = [cell for seed in recipe.seeds for choice in every for cell in choice.cells([seed])]
        train_all(recipe, wanted, output, jobs, console, f"{rows} rows")
    return found


def main() -> None:
    """Every recipe and every number of rows that is asked for."""
    recipes = {path.stem: path for path in sorted((HERE / "evidence" / "conditions").glob("*.yaml"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    take_places(parser)
    parser.add_argument("--only", nargs="+", choices=list(recipes), default=list(recipes))
    parser.add_argument("--rows", nargs="+", type=int, choices=ROWS, default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    enter_places(arguments, RESULTS)
    console = Console()
    for name in arguments.only:
        recipe = read_recipe(recipes[name], [], f"results/{name}-conditions")
        file = Path(recipe.output) / "conditions.json"
        found = read_json(file, "conditions")["rows"] if file.exists() else {}
        for rows in arguments.rows:
            of = train_rows(recipe, rows, arguments.jobs, console)
            found[str(rows)] = json_values(of)
            write_json(file, {**made_by(), "seeds": list(recipe.seeds), "epochs": recipe.train.epochs, "rows": found})


if __name__ == "__main__":
    main()
