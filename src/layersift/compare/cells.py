"""One cell of a grid: some layers, trained by a recipe with one seed, and judged. Cells differ in nothing else."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from layersift.compare.pipeline import Prepared, Tables, evaluate_all, prepare_tables, read_tables
from layersift.compare.recipe import Recipe, recipe_of
from layersift.errors import LayersiftError
from layersift.evaluate.load_run import load_run
from layersift.evaluate.metrics import evaluate
from layersift.files import read_json, write_text
from layersift.load.blocks import choose_stack, find_stacks
from layersift.load.data import read_table, require_rows
from layersift.load.encode import Encoder
from layersift.load.models import LoadedModel, load_model
from layersift.load.task import encode_sample, split_off
from layersift.progress import Reporter
from layersift.provenance import versions
from layersift.select.sample import describe
from layersift.select.selection import Selection, by_hand
from layersift.train.fit import partial_directory, train
from layersift.train.settings import TrainSettings

HELD_BACK = 0.2  # of the training rows, where learning rates are chosen
RETENTION_SAMPLES = 200

Judged = Literal["test", "validation"]


@dataclass(frozen=True)
class Cell:
    """What is trained and what it is judged on. The layers are all that tells two criteria's cells apart."""

    mask: str  # a digit a layer; empty: nothing is trained
    seed: int
    method: str = "lora"
    learning_rate: float = 0.0
    rank: int = 8
    alpha: float = 16
    judged: Judged = "test"

    @property
    def name(self) -> str:
        """A file name."""
        if not self.mask:
            return f"untouched-s{self.seed}-{self.judged}"
        return f"{self.method}-r{self.rank}-lr{self.learning_rate:g}-s{self.seed}-{self.judged}-{self.mask}"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that carry adapters."""
        return tuple(i for i, digit in enumerate(self.mask) if digit == "1")


def mask_of(layers: tuple[int, ...] | list[int], num_layers: int) -> str:
    """A digit a layer."""
    return "".join("1" if i in layers else "0" for i in range(num_layers))


@dataclass(frozen=True)
class CellResult:
    """What a cell gave and cost; the costs are None where nothing was trained."""

    cell: Cell
    metrics: dict[str, float | None]
    samples: int
    outcomes: tuple[float, ...]  # one a test sample, for paired comparisons
    weights: tuple[float, ...] = ()  # of the outcomes in the score; none: all alike
    standard_error: float | None = None
    trainable_parameters: int | None = None
    train_seconds: float | None = None
    peak_memory_bytes: int | None = None
    adapter_bytes: int | None = None
    train_loss: float | None = None  # the mean over its steps; of a resumed training over those since the checkpoint
    retention_loss: float | None = None  # a token, on text of another kind
    made: dict[str, Any] = field(default_factory=dict, compare=False)  # versions, device, threads

    @property
    def score(self) -> float | None:
        """The first metric."""
        return next(iter(self.metrics.values()))

    def save(self, path: Path) -> None:
        """Write it, all or nothing; on one line, since most of it is a number for each test sample."""
        values = asdict(self) | {"outcomes": [round(o, 6) for o in self.outcomes]}
        write_text(path, json.dumps(values, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> CellResult:
        """Read it back.

        Raises:
            LayersiftError: another kind of file.
        """
        values = read_json(path, "the result of a cell")
        try:
            lists = {name: tuple(values.get(name, ())) for name in ("outcomes", "weights")}
            return cls(**values | lists | {"cell": Cell(**values["cell"])})
        except (KeyError, TypeError):
            raise LayersiftError(f"{path}: not the result of a cell of this version") from None


def split_tables(recipe: Recipe) -> tuple[Tables, Tables | None]:
    """The rows to train on and to test on, and, where learning rates are chosen, the same training rows with a part
    held back to choose by. Test rows take no part in that choice.

    Raises:
        DataError: the data cannot be read.
    """
    tables = read_tables(recipe)
    if len(recipe.compare.learning_rates) < 2:
        return tables, None
    rest, held_back = split_off(tables.train, HELD_BACK, recipe.seed + 1)
    if (label := tables.train.columns.label) is not None and tables.train.kind == "classification":
        # A class that would otherwise be held back as a whole could not be learned.
        known = {row[label] for row in rest.rows}
        lone = tuple(row for row in held_back.rows if row[label] not in known)
        rest = replace(rest, rows=rest.rows + lone)
        held_back = replace(held_back, rows=tuple(row for row in held_back.rows if row[label] in known))
    return replace(tables, train=rest), Tables(rest, {"": held_back})


@dataclass(frozen=True)
class Bench:
    """A recipe's rows, encoded once for all cells of a process."""

    recipe: Recipe
    test: Prepared
    validation: Prepared | None

    def prepared(self, judged: Judged) -> Prepared:
        """The rows that a cell is trained and judged on."""
        return self.test if judged == "test" or self.validation is None else self.validation


@functools.lru_cache(maxsize=1)
def _bench(recipe_json: str) -> Bench:
    recipe = recipe_of(json.loads(recipe_json))
    tables, tuning = split_tables(recipe)
    quiet = Reporter()
    prepared = prepare_tables(recipe, tables, quiet)
    return Bench(recipe, prepared, prepare_tables(recipe, tuning, quiet) if tuning else None)


def run_cell(recipe: Recipe, cell: Cell, directory: Path) -> CellResult:
    """Train and judge a cell, and write its result. A training that was interrupted goes on from its checkpoint.

    Raises:
        LayersiftError: the model, the data or a setting cannot be used.
    """
    bench = _bench(json.dumps(recipe.to_json()))
    prepared = bench.prepared(cell.judged)
    settings = replace(
        recipe.train, method=cell.method, learning_rate=cell.learning_rate or None, rank=cell.rank, alpha=cell.alpha
    )
    working = directory / f"{cell.name}.run"
    costs: dict[str, Any] = {}
    if not cell.mask:
        loaded = _load(recipe, prepared.encoder, cell.seed)
    else:
        if not working.exists():
            _train(recipe, cell, prepared, settings, working)
        record, loaded, _ = load_run(working)
        names = ("trainable_parameters", "train_seconds", "peak_memory_bytes", "adapter_bytes", "train_loss")
        costs = {name: getattr(record, name) for name in names}
    found = evaluate_all(recipe, cell.name, prepared, loaded, Reporter())
    result = CellResult(
        cell=cell,
        metrics=found.metrics,
        samples=found.samples,
        outcomes=found.outcomes,
        weights=found.weights,
        standard_error=found.standard_error,
        retention_loss=_retention(recipe, loaded) if cell.judged == "test" else None,
        made={"versions": versions(), "device": str(loaded.model.device), "threads": torch.get_num_threads()},
        **costs,
    )
    result.save(result_path(directory, cell))
    shutil.rmtree(working, ignore_errors=True)
    return result


def _train(recipe: Recipe, cell: Cell, prepared: Prepared, settings: TrainSettings, working: Path) -> None:
    """On its own, so that its model is gone when the next one is loaded."""
    base = _load(recipe, prepared.encoder, cell.seed)
    train(
        base,
        recipe.model,
        prepared.encoder,
        prepared.train.examples,
        describe(prepared.tables.train),
        _selection(recipe, base, cell, prepared),
        settings,
        working,
        seed=cell.seed,
        resume=partial_directory(working).exists(),
    )


def result_path(directory: Path, cell: Cell) -> Path:
    """Where a finished cell's result lies."""
    return directory / f"{cell.name}.json"


def _load(recipe: Recipe, encoder: Encoder, seed: int) -> LoadedModel:
    images = encoder.processor is not None
    return load_model(recipe.model, encoder.kind, max(1, len(encoder.classes)), seed, images)


def _selection(recipe: Recipe, loaded: LoadedModel, cell: Cell, prepared: Prepared) -> Selection:
    stack = choose_stack(find_stacks(loaded.model), recipe.select.tower)
    return by_hand(
        loaded.name, loaded.revision, stack, cell.layers, describe(prepared.tables.train), "a cell of a grid"
    )


def _retention(recipe: Recipe, loaded: LoadedModel) -> float | None:
    """Loss a token on the recipe's text of another kind; None where there is none, or the model does not write."""
    if recipe.compare.retention is None or not loaded.model.can_generate() or loaded.seq2seq:
        return None
    table = read_table(recipe.compare.retention, kind="text")
    require_rows(table)
    encoder = Encoder(loaded.tokenizer, "text", max_length=recipe.data.max_length)
    encoded = encode_sample(table, encoder, RETENTION_SAMPLES, recipe.seed)
    return evaluate(loaded.model, encoder, encoded.examples, loaded.pad_id).metrics["loss"]
