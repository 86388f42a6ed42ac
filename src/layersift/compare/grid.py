"""Run the cells of a grid in worker processes: each fails alone, and what is finished is never done again."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from layersift.compare.cells import Cell, CellResult, result_path, run_cell
from layersift.compare.pipeline import read_tables
from layersift.compare.recipe import SECTIONS, Recipe
from layersift.errors import LayersiftError
from layersift.files import differences, read_json, write_json, write_text
from layersift.load.data import read_table
from layersift.load.models import load_config, revision_of
from layersift.progress import Reporter

CELLS = "cells"  # of an output: the results of its trainings
GRID_SECTIONS = ("model", "data", "train", "evaluate")  # of a recipe


@contextmanager
def open_grid(recipe: Recipe) -> Iterator[Path]:
    """The output directory: new, or of a grid whose cells are the same. Criteria, sizes and seeds may have changed.

    Raises:
        LayersiftError: it exists and belongs to something else, or another process is at work in it.
    """
    output, identity = Path(recipe.output), _identity(recipe)
    if not output.exists():
        write_json(output / "grid.json", identity)
    elif not (output / "grid.json").is_file():
        raise LayersiftError(f"{output} exists and holds no grid of trainings; give another --output")
    elif changed := differences(_completed(read_json(output / "grid.json", "the plan of a grid")), identity):
        raise LayersiftError(
            f"{output} holds trainings of another recipe (other {', '.join(changed)}); give another --output"
        )
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise LayersiftError(f"{output}: another process is at work in it; wait for it, or stop it") from None
    try:
        yield output
    finally:
        lock.release()


def contents_of(output: Path) -> dict[str, Any]:
    """Fingerprints of the model and of all data that a grid's cells were made of."""
    return dict(read_json(output / "grid.json", "the plan of a grid")["contents"])


def _identity(recipe: Recipe) -> dict[str, Any]:
    """All that a cell's result depends on and its name does not say, contents and not only names."""
    tables = read_tables(recipe)
    other = recipe.compare.retention
    contents = {
        "model": revision_of(recipe.model, load_config(recipe.model)),
        "train": tables.train.fingerprint,
        **{f"test {name}".strip(): table.fingerprint for name, table in tables.test.items()},
        "retention": None if other is None else read_table(other, kind="text").fingerprint,
    }
    sections = {name: asdict(getattr(recipe, name)) for name in GRID_SECTIONS}
    rest = {
        "seed": recipe.seed,
        "tower": recipe.select.tower,
        "retention": other,
        "tuned": len(recipe.compare.learning_rates) > 1,
        "contents": contents,
    }
    return dict(json.loads(json.dumps(sections | rest)))


def _completed(kept: dict[str, Any]) -> dict[str, Any]:
    """With the defaults, which are what they did, for those settings that the version that wrote it did not know."""
    defaults: dict[str, dict[str, Any]] = {name: {} for name in GRID_SECTIONS}
    for name in GRID_SECTIONS:
        for f in fields(SECTIONS[name]):
            if f.default_factory is not MISSING:
                defaults[name][f.name] = f.default_factory()
            elif f.default is not MISSING:
                defaults[name][f.name] = f.default
    return kept | {name: defaults[name] | kept.get(name, {}) for name in GRID_SECTIONS}


def finished(directory: Path, cells: Sequence[Cell]) -> dict[Cell, CellResult]:
    """Results of those cells that have one."""
    return {cell: CellResult.load(path) for cell in cells if (path := result_path(directory, cell)).is_file()}


def run_cells(
    recipe: Recipe, cells: Sequence[Cell], directory: Path, jobs: int, reporter: Reporter, label: str
) -> tuple[dict[Cell, CellResult], dict[Cell, str]]:
    """Results of the cells, and one line on each that failed.

    A worker that dies (for want of memory, say) takes its cell with it and nothing else. Failed cells are tried again
    the next time.
    """
    wanted = list(dict.fromkeys(cells))
    results = finished(directory, wanted)
    waiting = [cell for cell in wanted if cell not in results]
    failures: dict[Cell, str] = {}
    if not waiting:
        return results, failures
    directory.mkdir(parents=True, exist_ok=True)
    threads = max(1, _cores() // jobs)  # for the last cell, too, so that times can be compared
    with reporter.stage(label, len(waiting), "trainings") as progress:
        workers = [_Worker(recipe, directory, threads) for _ in range(min(jobs, len(waiting)))]
        try:
            queue = iter(waiting)
            for worker in workers:
                worker.start(next(queue, None))
            while busy := [w for w in workers if w.cell is not None]:
                for connection in wait([w.connection for w in busy]):
                    worker = next(w for w in busy if w.connection is connection)
                    cell, error = worker.collect()
                    if error is None:
                        results[cell] = CellResult.load(result_path(directory, cell))
                    else:
                        failures[cell] = error
                        reporter.say(f"failed: {cell.name}: {error}")
                    progress(1)
                    worker.start(next(queue, None))
        finally:
            for worker in workers:
                worker.stop()
    return results, failures


class _Worker:
    """A process that trains one cell after the other; a new one takes its place if it dies."""

    def __init__(self, recipe: Recipe, directory: Path, threads: int) -> None:
        self.arguments = (recipe, directory, threads)
        self.cell: Cell | None = None
        self._spawn()

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_work, args=(child, *self.arguments), daemon=True)
        self.process.start()
        child.close()

    def start(self, cell: Cell | None) -> None:
        """Give it its next cell, if there is one."""
        self.cell = cell
        if cell is not None:
            self.connection.send(cell)

    def collect(self) -> tuple[Cell, str | None]:
        """The cell that it is through with, and why it failed, if it did."""
        assert self.cell is not None
        error: str | None
        try:
            error, usable = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            error, usable = f"its process ended with exit code {self.process.exitcode}", False
        if not usable:
            self.stop()
            self._spawn()
        return self.cell, error

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _work(connection: Connection, recipe: Recipe, directory: Path, threads: int) -> None:
    """The worker's life: cells come in, an error or None goes out, and whether the process can be used again."""
    _die_with_parent()
    _quieten(threads)
    while True:
        try:
            cell: Cell = connection.recv()
        except EOFError:
            return
        log = directory / f"{cell.name}.error.txt"
        try:
            run_cell(recipe, cell, directory)
            log.unlink(missing_ok=True)
            connection.send((None, True))
        except LayersiftError as error:
            connection.send((str(error), True))
        except Exception as error:  # after some errors a GPU serves no process that was using it
            write_text(log, traceback.format_exc())
            connection.send((f"{type(error).__name__}: {' '.join(str(error).split())[:200]} (see {log})", False))


def _quieten(threads: int) -> None:
    import torch

    from layersift.__main__ import quieten_libraries

    quieten_libraries()
    torch.set_num_threads(threads)


def _die_with_parent() -> None:
    """A killed parent leaves no worker behind that would go on training beside the next start's."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_jobs(jobs: int) -> None:
    """Refuse fewer than one worker.

    Raises:
        LayersiftError: that.
    """
    if jobs < 1:
        raise LayersiftError(f"jobs {jobs} is out of range; at least 1 is needed")
