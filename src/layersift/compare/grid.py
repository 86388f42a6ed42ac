"""Run the cells of a grid in worker processes: each fails alone, and what is finished is never done again."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from layersift.compare.cells import Cell, CellResult, result_path, run_cell
from layersift.compare.recipe import Recipe
from layersift.errors import LayersiftError
from layersift.files import differences, read_json, write_json, write_text
from layersift.progress import Reporter

CELLS = "cells"  # of an output: the results of its trainings


def open_grid(recipe: Recipe) -> Path:
    """The output directory: new, or of a grid whose cells are the same. Criteria, sizes and seeds may have changed.

    Raises:
        LayersiftError: it exists and belongs to something else.
    """
    output = Path(recipe.output)
    whole = json.loads(json.dumps(recipe.to_json()))
    same = {name: whole[name] for name in ("model", "data", "train", "evaluate", "seed")}
    same |= {"retention": recipe.compare.retention, "tuned": len(recipe.compare.learning_rates) > 1}
    if not output.exists():
        write_json(output / "grid.json", same)
    elif not (output / "grid.json").is_file():
        raise LayersiftError(f"{output} exists and holds no grid of trainings; give another --output")
    else:
        before = read_json(output / "grid.json", "the plan of a grid")
        # Settings that a version before did not know had the effect of their defaults.
        changed = [name for name in differences(before, same) if _has(before, name)]
        if changed:
            raise LayersiftError(
                f"{output} holds trainings of another recipe (other {', '.join(changed)}); give another --output"
            )
    return output


def _has(values: dict[str, Any], name: str) -> bool:
    """Whether there is an entry of that dotted name."""
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


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
    threads = max(1, _cores() // min(jobs, len(waiting)))
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
        try:
            error = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            error = f"its process ended with exit code {self.process.exitcode}"
            self._spawn()
        return self.cell, error

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _work(connection: Connection, recipe: Recipe, directory: Path, threads: int) -> None:
    """The worker's life: cells come in, an error or None goes out."""
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
            connection.send(None)
        except LayersiftError as error:
            connection.send(str(error))
        except Exception as error:
            write_text(log, traceback.format_exc())
            connection.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]} (see {log})")


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
