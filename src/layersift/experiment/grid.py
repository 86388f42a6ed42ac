"""A grid of trainings in one directory: what it belongs to, and how worker processes of this machine fill it."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch

from layersift.config.defaults import RULE, default_targets
from layersift.config.fields import default_of, with_current_keys
from layersift.config.recipe import DataSettings, EvaluateSettings, ModelSource, Recipe, TaskKind
from layersift.config.select import SelectSettings, rule_digest
from layersift.config.train import TrainSettings
from layersift.data.examples import digest_of
from layersift.data.split import count_read_alike
from layersift.errors import LayersiftError
from layersift.experiment.cell import CELLS, Job, Jobs, Runner, error_path, result_path, run_cell
from layersift.experiment.prepare import Prepared, prepare, read_retention, read_tables
from layersift.files import (
    alone,
    begun_otherwise,
    new_directory,
    read_json,
    remedy_of,
    telling_a_full_disk,
    write_json,
    write_text,
)
from layersift.models.load import load_config
from layersift.models.source import revision_of
from layersift.processes import by_main_process, count_named, several
from layersift.progress import Reporter, quieten_libraries
from layersift.records.runs import Cell, Result

Message = tuple[Literal["stage", "advance", "log", "done"], Any]


class Worker:
    """A process that trains one cell after the other; a new one takes its place if it dies."""

    def __init__(self, recipe: Recipe, output: Path, threads: int) -> None:
        self.arguments = (recipe, output, threads)
        self.job: Job | None = None
        self._spawn()

    def _spawn(self) -> None:
        context = _context()
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_work, args=(child, *self.arguments), daemon=True)
        self.process.start()
        child.close()

    def start(self, job: Job | None) -> None:
        """Give it its next cell, if there is one."""
        self.job = job
        if job is not None:
            self.connection.send(job)

    def hear(self) -> Message:
        """What it has to say next: a stage begins, some of it is done, a warning, or it is through with its cell.

        Of the last the message is why the cell failed, or None.
        """
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            kind, value = "done", (f"its process ended with exit code {self.process.exitcode}", False)
        if kind != "done":
            return kind, value
        error, usable = value
        if not usable:
            self.stop()
            self._spawn()
        return "done", error

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _context() -> Any:
    """How processes are started: on Linux by a server that has imported everything once, which takes seconds.

    Where there is a GPU each imports for itself, since a GPU that has been asked for serves no forked process.
    """
    if sys.platform != "linux" or torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Telling(Reporter):
    """Passes on to the parent process what a cell is doing."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @contextmanager
    def stage(self, label: str, total: int, unit: str = "samples") -> Iterator[Callable[[int], None]]:
        self.connection.send(("stage", (label, total, unit)))
        yield lambda done: self.connection.send(("advance", done))


class _Forwarding(logging.Handler):
    """Passes on what the library logs."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(logging.WARNING)
        self.connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self.connection.send(("log", (record.name, record.levelno, record.getMessage())))


def _work(connection: Connection, recipe: Recipe, output: Path, threads: int) -> None:
    """The worker's life: jobs come in, an error or None goes out, and whether the process can be used again."""
    _die_with_parent()
    quieten_libraries()
    torch.set_num_threads(threads)
    gc.freeze()  # what is imported stays: a cell's collections of garbage need not walk through it
    logging.getLogger("layersift").addHandler(_Forwarding(connection))
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        log = error_path(output, job.cell, recipe.train)
        try:
            with telling_a_full_disk(output):
                run_cell(recipe, job, output, _Telling(connection))
            log.unlink(missing_ok=True)
            connection.send(("done", (None, True)))
        except LayersiftError as error:
            connection.send(("done", (str(error), True)))
        except OSError as error:  # a full disk
            said = f"{error.filename or output}: {error.strerror or error}{remedy_of(error)}"
            connection.send(("done", (said, True)))
        except Exception as error:  # after some errors a GPU serves no process that was using it
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            with suppress(OSError):  # the disk may be full by now
                write_text(log, traceback.format_exc())
                said += f" (see {log})"
            connection.send(("done", (said, False)))


def _die_with_parent() -> None:
    """A killed parent leaves no worker behind that would go on training beside the next start's."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def threads_each(jobs: int) -> int:
    """Threads for each of ``jobs`` workers: as OMP_NUM_THREADS says, or a share of the cores that this process has.

    The last cell has no more of them than the others, so that times can be compared.
    """
    if (named := count_named("OMP_NUM_THREADS")) is not None:
        return named
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


class _Shown:
    """A worker's stages, as they come in, in the reporter of this process."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.open = reporter, ExitStack()
        self.progress: Any = None

    def take(self, kind: str, value: Any) -> None:
        """A message of a worker that is not through with its cell."""
        if kind == "stage":
            self.end()
            self.progress = self.open.enter_context(self.reporter.stage(*value))
        elif kind == "advance" and self.progress is not None:
            self.progress(value)
        elif kind == "log":
            name, level, message = value
            logging.getLogger(name).log(level, "%s", message)

    def end(self) -> None:
        """Close the stage that is open."""
        self.open.close()
        self.open, self.progress = ExitStack(), None


@dataclass(frozen=True)
class Processes:
    """So many trainings at a time, each in a process of its own. A process that dies takes its cell with it alone."""

    count: int

    def run(
        self, recipe: Recipe, jobs: Sequence[Job], output: Path, reporter: Reporter
    ) -> Generator[tuple[Job, str | None], None, None]:
        """Carry out cells; see :class:`layersift.experiment.cell.Runner`."""
        several = min(self.count, len(jobs))
        workers = [Worker(recipe, output, threads_each(self.count)) for _ in range(several)]
        # What one worker is doing is shown; of several at once only how many are through.
        shown = _Shown(reporter if several == 1 else Reporter())
        try:
            following = iter(jobs)
            for worker in workers:
                worker.start(next(following, None))
            while busy := [w for w in workers if w.job is not None]:
                for connection in wait([w.connection for w in busy]):
                    worker = next(w for w in busy if w.connection is connection)
                    kind, value = worker.hear()
                    if kind != "done":
                        shown.take(kind, value)
                        continue
                    shown.end()
                    job = worker.job
                    assert job is not None
                    yield job, value
                    worker.start(next(following, None))
        finally:
            shown.end()
            for worker in workers:
                worker.stop()


class SharedTrainings:
    """One training after the other, in this process, each shared with the others that were started.

    What one of them meets ends all: nobody knows where the others are by then.
    """

    def run(
        self, recipe: Recipe, jobs: Sequence[Job], output: Path, reporter: Reporter
    ) -> Generator[tuple[Job, str | None], None, None]:
        """Carry out cells; see :class:`layersift.experiment.cell.Runner`."""
        for job in jobs:
            with telling_a_full_disk(output):
                run_cell(recipe, job, output, reporter)
            gc.collect()  # a model, before the next one is loaded
            yield job, None


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

    Of several processes the main one opens it.

    Args:
        prepared: the rows as the trainings see them; None: they are read here.
        kind: what is kept there. A run and a sweep have one selection, whose settings must not change either.

    Raises:
        LayersiftError: it exists and belongs to something else, or another process is at work in it.
    """
    output, identity = Path(recipe.output), _identity(recipe, kind, prepared)
    with ExitStack() as held:
        by_main_process(lambda: held.enter_context(_opened(output, kind, identity)))
        yield output


@contextmanager
def _opened(output: Path, kind: Kind, identity: dict[str, Any]) -> Iterator[None]:
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
        yield


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
    given = recipe.train.named_rate is not None or recipe.compare.learning_rates
    rules = {} if given else {"learning rate": RULE}
    targets = None if recipe.train.target_modules else default_targets(recipe.train.method, kind)
    return rules if targets is None else rules | {"target modules": targets}


def _kept(output: Path, kind: Kind) -> dict[str, Any]:
    """What the grid was begun with.

    Settings that the version that wrote it did not know have their defaults, which are what they did. That version may
    not have written what kind of grid it is, either: then it is of this one, as far as that can be.
    """
    kept = with_current_keys(read_json(output / GRID_FILE, "what a grid was begun with"))
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
    results = by_main_process(lambda: finished(output, [job.cell for job in queue], recipe.train))
    waiting = [job for job in queue if job.cell not in results]
    failures: dict[Cell, str] = {}
    if not waiting:
        return results, failures
    (output / CELLS).mkdir(parents=True, exist_ok=True)
    runner: Runner = (SharedTrainings() if several() else Processes(jobs)) if isinstance(jobs, int) else jobs
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
