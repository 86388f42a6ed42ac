"""Learning rates on a grid, by model, task, adapted layers, modules and rank: what the default rates rest on.

    python benchmarks/default_rates.py SHARED DATA MODELS [--only minilm-trec] [--jobs 2]
        [--defaults|--rule|--finished]

SHARED holds trec/, sst2/ and gsm8k/, DATA what `python benchmarks/evidence_tasks.py SHARED DATA` writes, MODELS what
`python benchmarks/evidence_models.py MODELS` fetches. Each variant is trained at rates a factor of the root of three
apart with seed 0; the best on rows held back from training and its neighbours with two more seeds. Test rows choose
nothing. --defaults trains the main variants as config/defaults.py has it, encoders with five seeds, decoders with
three. --rule trains four variants at the rule's rate for the grid's epochs, with the grid's three seeds: whether the
rule comes within half a point of the grid's best. Every training is kept in
benchmarks/results/default_rates/PAIR/cells.json: start it again and it goes on. The tables are written to
benchmarks/results/default_rates/table.md; --finished writes them of what there is.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from comparing import train_all
from layersift.commands.console import Console
from layersift.config.defaults import EPOCHS, Trained, default_rate, fill_epochs, hidden_size
from layersift.config.recipe import Recipe, TaskKind, recipe_of
from layersift.config.train import TrainSettings
from layersift.experiment.grid import finished, open_grid
from layersift.files import write_text
from layersift.models.load import load_config
from layersift.records.runs import Cell, Result
from places import enter_places, pack_all, take_places

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "default_rates"
STEP = 3**0.5
SEEDS = (0, 1, 2)
WITHIN = 0.005  # of accuracy: half a point
COLLAPSED = 0.15  # of accuracy below the best rate's mean; 0.15 nats where the score is a loss


@dataclass(frozen=True)
class Variant:
    """What carries adapters: the last fraction of the layers, on which modules, of which rank."""

    name: str
    fraction: float = 1.0
    modules: str = ""  # PEFT's default
    rank: int = 8
    alpha: float = 16
    epochs: float = 0.0  # the pair's
    strategy: str = "static"

    def cell(self, train: TrainSettings, layers: int, rate: float, seed: int) -> Cell:
        """Its training at a rate, by the recipe's other settings."""
        count = max(1, round(self.fraction * layers))
        mask = "0" * (layers - count) + "1" * count
        own = replace(
            train,
            learning_rate=rate,
            rank=self.rank,
            alpha=self.alpha,
            epochs=self.epochs or train.epochs,
            target_modules=self.modules or train.target_modules,
            strategy=self.strategy,
        )
        return Cell(mask, seed, own)


ALL, HALF, THIRD = Variant("all layers"), Variant("last half", 0.5), Variant("last third", 1 / 3)
HALF_RANK = Variant("all layers, half the rank", rank=4, alpha=8)
FREEZING = Variant("progressive freezing", strategy="freezing")
LINEAR = Variant("all layers, all-linear", modules="all-linear")
LINEAR_HALF = Variant("last half, all-linear", 0.5, "all-linear")
QUERY_VALUE = Variant("all layers, q,v", modules="q_proj,v_proj", rank=42, alpha=84)  # as many parameters as all-linear


@dataclass(frozen=True)
class Pair:
    """A model and a task: rows to train on, rows held back to choose by, test rows."""

    model: str
    layers: int
    task: str
    train: int
    held_back: int
    test: int
    variants: tuple[Variant, ...]
    rates: tuple[float, ...]  # in steps of the root of three from 1e-3
    epochs: float = 3
    batch_size: int = 16
    dtype: str | None = None
    warmup: float = 0.0
    dropout: bool = False  # below the first trained layer
    own_epochs: bool = False  # whether --defaults also trains for as many epochs as the default has

    @property
    def default_seeds(self) -> range:
        """Of the trainings at the defaults: five of encoders; decoders take longer."""
        return range(5 if self.dtype is None else 3)

    @property
    def grid(self) -> list[float]:
        """The rates."""
        return [float(f"{1e-3 * STEP**power:.3g}") for power in self.rates]


LONGER = tuple(Variant(f"all layers, {epochs} epochs", epochs=epochs) for epochs in (6, 12, 24))
FOUR = (ALL, HALF_RANK, HALF, FREEZING)
ENCODER = (*FOUR, THIRD)
PAIRS = {
    "minilm-trec": Pair("MiniLM", 6, "trec", 600, 1000, 500, (*ENCODER, LINEAR_HALF), tuple(range(5))),
    "minilm-trec-long": Pair("MiniLM", 6, "trec", 2000, 1000, 500, FOUR, tuple(range(1, 5))),
    "minilm-docstrings": Pair("MiniLM", 6, "docstrings", 600, 243, 847, ENCODER, tuple(range(1, 5))),
    "minilm-sst2": Pair("MiniLM", 6, "sst2", 600, 600, 872, ENCODER, tuple(range(1, 5))),
    "minilm-trec-few": Pair("MiniLM", 6, "trec", 128, 1000, 500, (ALL, *LONGER), (2,)),
    "minilm-trec-warmup": Pair("MiniLM", 6, "trec", 600, 1000, 500, (ALL,), (3, 4), warmup=0.1),
    "minilm-trec-dropout": Pair("MiniLM", 6, "trec", 600, 1000, 500, (HALF,), (3, 4), dropout=True),
    "smollm2-gsm8k": Pair(
        "SmolLM2.gguf",
        30,
        "gsm8k",
        96,
        48,
        96,
        (LINEAR, LINEAR_HALF, QUERY_VALUE),
        tuple(range(4)),
        1,
        8,
        "float32",
        own_epochs=True,
    ),
    "mpnet-trec": Pair("MPNet", 12, "trec", 300, 300, 500, FOUR, tuple(range(-2, 3))),
    "gemma3-gsm8k": Pair("Gemma3.gguf", 18, "gsm8k", 96, 48, 96, (LINEAR,), tuple(range(4)), 1, 8, "float32"),
}
SEVERAL_SEEDS = (*FOUR, LINEAR, LINEAR_HALF)  # the others are trained with one
MAIN = (ALL, HALF, LINEAR, LINEAR_HALF)  # trained at the defaults
SOURCES = {
    "trec": ("trec/train.jsonl", "trec/test.jsonl"),
    "sst2": ("sst2/train.jsonl", "sst2/validation.jsonl"),
    "gsm8k": ("gsm8k/train.jsonl", "gsm8k/test.jsonl"),
    "docstrings": ("docstrings/train.jsonl", "docstrings/test.jsonl"),
}


def recipe_for(name: str, pair: Pair) -> Recipe:
    """The recipe, with its rows drawn and written where the process works."""
    sources = SOURCES[pair.task]
    draw = random.Random(f"default rates {pair.task}")
    rows, tests = ([line for line in Path(source).read_text().split("\n") if line] for source in sources)
    draw.shuffle(rows)
    draw.shuffle(tests)
    seen: dict[str, str] = {}
    for row in rows:  # no row of one part in another
        seen.setdefault(" ".join(json.dumps(json.loads(row), sort_keys=True).lower().split()), row)
    distinct = list(seen.values())
    parts = {
        "train": distinct[: pair.train],
        "held-back": distinct[pair.train : pair.train + pair.held_back],
        "test": tests[: pair.test],
    }
    for part, lines in parts.items():
        place = Path("drawn") / name / f"{part}.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("\n".join(lines) + "\n")
    drawn = f"drawn/{name}"
    columns = {"prompt_column": "question", "response_column": "answer"} if pair.task == "gsm8k" else {}
    return recipe_of(
        {
            "model": {"name": pair.model, **({"dtype": pair.dtype} if pair.dtype else {})},
            "data": {"data": f"{drawn}/train.jsonl", **columns},
            "output": f"results/{name}",
            "train": {
                "epochs": pair.epochs,
                "learning_rate": 1e-3,  # every training names its own; so the grid does not rest on the default rule
                "batch_size": pair.batch_size,
                "warmup_ratio": pair.warmup,
                "prefix_dropout": pair.dropout,
            },
            "evaluate": {"data": {"test": f"{drawn}/test.jsonl", "held-back": f"{drawn}/held-back.jsonl"}},
        },
        name,
    )


def measured(result: Result, part: str) -> float:
    """Accuracy, or loss a token with its sign turned, on a part of the rows."""
    accuracy, loss = result.metrics.get(f"accuracy {part}"), result.metrics.get(f"loss {part}")
    value = accuracy if accuracy is not None else None if loss is None else -loss
    return float("-inf") if value is None or value != value else value


def mean_of(results: Sequence[Result], part: str) -> float:
    """Over seeds."""
    return statistics.fmean(measured(result, part) for result in results)


def train_grid(recipe: Recipe, pair: Pair, arguments: argparse.Namespace, console: Console) -> None:
    """Seed 0 at every rate, then two more seeds around the best; or the defaults, or the rule's rates."""
    jobs = arguments.jobs
    with open_grid(recipe) as output:
        if arguments.rule:
            cells = [rule_cell(recipe, pair, v, seed) for v in pair.variants if v in FOUR for seed in SEEDS]
            train_all(recipe, cells, output, jobs, console, "rule's rates")
            return
        if arguments.defaults:
            cells = [default_cell(recipe, pair, v, s) for s in pair.default_seeds for v in pair.variants if v in MAIN]
            if pair.own_epochs:
                own = [v for v in pair.variants if v in MAIN]
                cells += [default_cell(recipe, pair, v, s, EPOCHS) for s in pair.default_seeds for v in own]
            train_all(recipe, cells, output, jobs, console, "default rates")
            return
        first = [v.cell(recipe.train, pair.layers, rate, 0) for v in pair.variants for rate in pair.grid]
        done = train_all(recipe, first, output, jobs, console, "every rate, seed 0")
        more = []
        for variant in (v for v in pair.variants if v in SEVERAL_SEEDS and len(pair.rates) > 1 and pair.dtype is None):
            scores = {
                rate: measured(done[variant.cell(recipe.train, pair.layers, rate, 0)], "held-back")
                for rate in pair.grid
            }
            best = pair.grid.index(max(scores, key=lambda rate: scores[rate]))
            around = pair.grid[max(0, best - 1) : best + 2]
            more += [variant.cell(recipe.train, pair.layers, rate, seed) for seed in SEEDS[1:] for rate in around]
        train_all(recipe, more, output, jobs, console, "two more seeds around the best")


def default_cell(recipe: Recipe, pair: Pair, variant: Variant, seed: int, epochs: float | None = None) -> Cell:
    """The training that the variant gets where only rows are given; of a decoder for the grid's epochs, or others."""
    cell = variant.cell(recipe.train, pair.layers, recipe.train.named_rate or 0.0, seed)
    kind: TaskKind = "instruction" if pair.task == "gsm8k" else "classification"
    trained = Trained(kind, hidden_size(load_config(recipe.model)), len(cell.layers), pair.layers)
    rate = default_rate(replace(recipe.train, learning_rate=None, rank=variant.rank, alpha=variant.alpha), trained)
    if variant.epochs or pair.epochs != EPOCHS:
        return cell.with_settings(learning_rate=rate, epochs=epochs or cell.train.epochs)
    epochs = fill_epochs(replace(recipe.train, epochs=None), kind, pair.train).num_epochs
    return cell.with_settings(learning_rate=rate, epochs=epochs)


def rule_cell(recipe: Recipe, pair: Pair, variant: Variant, seed: int) -> Cell:
    """The training at the rule's rate, for the grid's epochs."""
    return default_cell(recipe, pair, variant, seed).with_settings(epochs=pair.epochs)


def told(value: float, pair: Pair) -> str:
    """Accuracy in percent, or the loss in nats a token."""
    return f"{-value:.4f}" if pair.task == "gsm8k" else f"{100 * value:.1f}"


def results_by_rate(recipe: Recipe, pair: Pair, variant: Variant) -> dict[float, list[Result]]:
    """The trainings of a variant on the grid, those of all seeds at each rate."""
    by_rate: dict[float, list[Result]] = {}
    wanted = [variant.cell(recipe.train, pair.layers, rate, seed) for rate in pair.grid for seed in SEEDS]
    for cell, result in finished(Path(recipe.output), wanted, recipe.train).items():
        by_rate.setdefault(cell.train.named_rate or 0.0, []).append(result)
    return dict(sorted(by_rate.items()))


def best_of(by_rate: dict[float, list[Result]]) -> float:
    """The best rate by held-back rows, among those with the most seeds."""
    most = max(map(len, by_rate.values()))
    known = {rate: mean_of(of, "held-back") for rate, of in by_rate.items() if len(of) == most}
    return max(known, key=lambda rate: known[rate])


def grid_row(name: str, recipe: Recipe, pair: Pair, variant: Variant) -> list[str]:
    """What each rate scores on held-back rows, in brackets the number of seeds."""
    by_rate = results_by_rate(recipe, pair, variant)
    scores = "; ".join(f"{r:g}: {told(mean_of(of, 'held-back'), pair)} ({len(of)})" for r, of in by_rate.items())
    return [name, variant.name, str(pair.train), f"{variant.epochs or pair.epochs:g}", scores]


def default_row(
    name: str, recipe: Recipe, pair: Pair, variant: Variant, epochs: float | None = None
) -> list[str] | None:
    """The default beside the grid's best rate, on test rows; None where it has not been trained."""
    by_rate = results_by_rate(recipe, pair, variant)
    wanted = [default_cell(recipe, pair, variant, seed, epochs) for seed in pair.default_seeds]
    results = list(finished(Path(recipe.output), wanted, recipe.train).values())
    if not by_rate or not results:
        return None
    best = best_of(by_rate)
    reference, scores = mean_of(by_rate[best], "test"), [measured(result, "test") for result in results]
    cell, mean = wanted[0], statistics.fmean(scores)
    seconds = [statistics.fmean(r.train_seconds or 0 for r in of) for of in (by_rate[best], results)]
    return [
        name,
        variant.name,
        f"{best:g}",
        f"{pair.epochs:g}",
        told(reference, pair),
        f"{cell.train.learning_rate:g}",
        f"{cell.train.num_epochs:g}",
        told(mean, pair),
        told(min(scores), pair),
        f"{mean - reference:+.4f}" if pair.task == "gsm8k" else f"{100 * (mean - reference):+.1f}",
        str(sum(score < reference - COLLAPSED for score in scores)),
        f"{seconds[1] / seconds[0]:.2f}",
    ]


def rule_row(name: str, recipe: Recipe, pair: Pair, variant: Variant) -> list[str] | None:
    """The rule's rate beside the grid's best, on test rows; None where its three seeds have not been trained."""
    by_rate = results_by_rate(recipe, pair, variant)
    cells = [rule_cell(recipe, pair, variant, seed) for seed in SEEDS]
    results = list(finished(Path(recipe.output), cells, recipe.train).values())
    if len(results) < len(SEEDS) or not by_rate or max(map(len, by_rate.values())) < len(SEEDS):
        return None
    best = best_of(by_rate)
    reference, scores = mean_of(by_rate[best], "test"), [measured(result, "test") for result in results]
    apart = statistics.fmean(scores) - reference
    return [
        name,
        variant.name,
        f"{cells[0].train.learning_rate:g}",
        told(statistics.fmean(scores), pair),
        f"{best:g}",
        told(reference, pair),
        f"{100 * apart:+.1f}",
        str(sum(score < reference - COLLAPSED for score in scores)),
        "yes" if apart >= -WITHIN else "no",
    ]


RULE_HEADER = ["pair", "variant", "rule's rate", "test", "grid's best rate", "test", "difference", "collapsed"]
RULE_HEADER += ["within half a point"]
GRID_HEADER = ["pair", "variant", "rows", "epochs", "held-back score by rate (seeds)"]
DEFAULT_HEADER = ["pair", "variant", "grid's best rate", "epochs", "test", "default rate", "epochs", "test"]
DEFAULT_HEADER += ["worst seed", "difference", "collapsed", "seconds by the grid's"]


def table_of(header: list[str], rows: list[list[str]]) -> str:
    """As Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows]) + "\n"


def main() -> None:
    """Every pair that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    take_places(parser)
    parser.add_argument("--only", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--defaults", action="store_true")
    parser.add_argument("--rule", action="store_true")
    parser.add_argument("--finished", action="store_true")
    arguments = parser.parse_args()
    enter_places(arguments, RESULTS)
    console = Console()
    grid, defaults, rule = [], [], []
    for name in arguments.only:
        pair = PAIRS[name]
        recipe = recipe_for(name, pair)
        if not arguments.finished:
            train_grid(recipe, pair, arguments, console)
            pack_all(RESULTS)
        variants = [variant for variant in pair.variants if results_by_rate(recipe, pair, variant)]
        grid += [grid_row(name, recipe, pair, variant) for variant in variants]
        lengths = (None, EPOCHS) if pair.own_epochs else (None,)
        rows = [default_row(name, recipe, pair, variant, epochs) for epochs in lengths for variant in variants]
        defaults += [row for row in rows if row]
        rule += [row for variant in variants if variant in FOUR and (row := rule_row(name, recipe, pair, variant))]
    tables = [(DEFAULT_HEADER, defaults), (GRID_HEADER, grid), (RULE_HEADER, rule)]
    text = "\n".join(table_of(*table) for table in tables)
    print(text)
    if set(arguments.only) == set(PAIRS):
        write_text(RESULTS / "table.md", text)


if __name__ == "__main__":
    main()
