"""A grid of trainings in one directory: what it belongs to, and how it is filled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

from layersift.config.defaults import RULE, default_targets
from layersift.config.fields import default_of
from layersift.config.inputs import DataSettings, EvaluateSettings, ModelSource, TaskKind
from layersift.config.recipe import Recipe
from layersift.config.select import SelectSettings, rule_digest
from layersift.config.train import TrainSettings
from layersift.data.examples import digest_of
from layersift.data.split import count_read_alike
from layersift.errors import LayersiftError
from layersift.experiment.cell import CELLS, Job, Jobs, result_path
from layersift.experiment.prepare import Prepared, prepare, read_retention, read_tables
from layersift.experiment.worker_processes import Processes
from layersift.files import alone, begun_otherwise, new_directory, read_json, write_json
from layersift.models.load import load_config
from layersift.models.source import revision_of
from layersift.progress import Reporter
from layersift.records.result import Cell, Result

GRID_FILE = "grid.json"
SINCE = ("examples", "rule")  # of the contents, what versions up to 0.1 did not write
BEFORE = {"train": {"prefix_dropout": True}}  # what older versions did that did not know the setting
Kind = Literal["comparison", "run", "sweep", "rank sweep"]  # an oracle shares the comparison's
# Of a recipe, what all cells share.
SECTIONS: dict[str, Any] = {
    "model": ModelSource,
    "data": DataSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "select": SelectSettings,
}


@contextmanager
def open_grid(recipe: Recipe, kind: Kind = "comparison", prepared: Prepared | None = None) -> Iterator[Path]:
    """The output directory: new, or of a grid whose cells are the same; variants, criteria, sizes and seeds may differ.

    Args:
        prepared: the rows as the trainings see them; None: they are read here.
        kind: what is kept there. A run and a sweep have one selection, whose settings must not change either.

    Raises:
        LayersiftError: it exists and belongs to something else, or another process is at work in it.
    """
    output, identity = Path(recipe.output), _identity(recipe, kind, prepared)
    if not os.path.lexists(output):
        with new_directory(output, "a grid of trainings") as place:  # a kill leaves it whole or not there
            write_json(place / GRID_FILE, identity)
    elif not (output / GRID_FILE).is_file():
        raise LayersiftError(f"{output} exists and holds no grid of trainings; give another --output")
    elif (kept := _kept(output, kind))["kind"] != kind:
        raise LayersiftError(f"{output} holds a {kept['kind']}, and this is a {kind}; give another --output")
    elif (said := begun_otherwise(kept, _as_known(identity, kept))) is not None:
        raise LayersiftError(
            f"{output} holds trainings of another recipe ({said}); give another --output, or remove it"
        )
    with alone(output / ".lock", output):
        yield output


def contents_of(output: Path) -> dict[str, Any]:
    """Fingerprints of the model and of all data that a grid's cells were made of."""
    return dict(read_json(output / GRID_FILE, "what a grid was begun with")["contents"])


def fingerprints(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """Of the model and of all rows, as they are on this machine."""
    tables, other = prepared.tables, recipe.compare.retention
    return {
        "model": revision_of(recipe.model, load_config(recipe.model)),
        "train": tables.train.fingerprint,
        **{f"test {name}".strip(): table.fingerprint for name, table in tables.test.items()},
        "retention": None if other is None else read_retention(other).fingerprint,
        "examples": {
            "train": digest_of(prepared.train.examples),
            **{f"test {name}".strip(): digest_of(rows.examples) for name, rows in prepared.test.items()},
        },
    }


def _as_known(identity: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """The identity without those contents that the version which began the grid did not write."""
    known = {
        name: value for name, value in identity["contents"].items() if name not in SINCE or name in kept["contents"]
    }
    return identity | {"contents": known}


def _identity(recipe: Recipe, kind: Kind, prepared: Prepared | None) -> dict[str, Any]:
    """All that a cell's result depends on and its name does not say, contents and not only names."""
    prepared = prepared or prepare(recipe, read_tables(recipe), Reporter())
    tables = prepared.tables
    contents = fingerprints(recipe, prepared) | {
        "rule": None if kind == "comparison" else rule_digest(recipe.select.criterion)
    }
    names = [name for name in SECTIONS if name != "select" or kind != "comparison"]
    tuned = len(recipe.compare.learning_rates) > 1
    rest = {
        "kind": kind,
        "seed": recipe.seed,
        "tower": recipe.select.tower,
        "retention": recipe.compare.retention,
        "tuned": tuned,
        # Versions up to 0.1 held other rows back to choose rates by, where some read alike; null is what they wrote.
        "rows held back": "alike on one side" if tuned and count_read_alike(tables.train) else None,
        "defaults": _left_to_defaults(recipe, tables.train.kind) or None,
        "contents": contents,
    }
    return dict(json.loads(json.dumps({name: asdict(getattr(recipe, name)) for name in names} | rest)))


def _left_to_defaults(recipe: Recipe, kind: TaskKind) -> dict[str, str]:
    """What the trainings take from rules of this version, by rule: one of another version may have others."""
    given = recipe.train.learning_rate is not None or recipe.compare.learning_rates
    rules = {} if given else {"learning rate": RULE}
    targets = None if recipe.train.target_modules else default_targets(recipe.train.method, kind)
    return rules if targets is None else rules | {"target modules": targets}


def _kept(output: Path, kind: Kind) -> dict[str, Any]:
    """What the grid was begun with.

    Settings that the version that wrote it did not know have their defaults, which are what they did. That version may
    not have written what kind of grid it is, either: then it is of this one, as far as that can be.
    """
    kept = read_json(output / GRID_FILE, "what a grid was begun with")
    of_variants = "select" in kept
    guessed = kind if of_variants == (kind != "comparison") else "run" if of_variants else "comparison"
    identity = {"kind": guessed, **kept}
    for name, cls in SECTIONS.items():
        if isinstance(kept.get(name), dict):
            known = {f.name: default_of(f) for f in fields(cls)}
            before = BEFORE.get(name, {})
            identity[name] = json.loads(json.dumps(known, default=lambda _: None)) | before | kept[name]
    return identity


def finished(output: Path, cells: Sequence[Cell], shared: TrainSettings) -> dict[Cell, Result]:
    """Results of those cells that have one; ``shared`` are the settings of the grid's recipe."""
    return {cell: _load(output, cell, shared) for cell in cells if result_path(output, cell, shared).is_file()}


def _load(output: Path, cell: Cell, shared: TrainSettings) -> Result:
    """A cell's result. Its file may be of an older version, which wrote fewer settings."""
    return replace(Result.load(result_path(output, cell, shared)), cell=cell)


def run_cells(
    recipe: Recipe, wanted: Sequence[Job], output: Path, jobs: Jobs, reporter: Reporter, label: str
) -> tuple[dict[Cell, Result], dict[Cell, str]]:
    """Results of the cells, and one line on each that failed. Failed cells are tried again the next time."""
    first: dict[Cell, Job] = {}
    for asked in wanted:
        first.setdefault(asked.cell, asked)
    queue = list(first.values())  # in the order asked for, so that what is cut short has its first rows
    results = finished(output, [job.cell for job in queue], recipe.train)
    waiting = [job for job in queue if job.cell not in results]
    failures: dict[Cell, str] = {}
    if not waiting:
        return results, failures
    (output / CELLS).mkdir(parents=True, exist_ok=True)
    runner = Processes(jobs) if isinstance(jobs, int) else jobs
    carried_out = runner.run(recipe, waiting, output, reporter)
    with reporter.stage(label, len(waiting), "trainings") as progress, closing(carried_out):
        for job, failure in carried_out:
            if failure is None:
                results[job.cell] = _load(output, job.cell, recipe.train)
            else:
                failures[job.cell] = failure
                reporter.say(f"failed: {job.keep or job.cell}: {failure}")
            progress(1)
    return results, failures


def require_jobs(jobs: Jobs) -> None:
    """Refuse fewer than one worker.

    Raises:
        LayersiftError: that.
    """
    if isinstance(jobs, int) and jobs < 1:
        raise LayersiftError(f"jobs {jobs} is out of range; at least 1 is needed")
