"""Trainings in worker processes of this machine: each trains one cell after the other, and a dead one is replaced."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch

from layersift.config.recipe import Recipe
from layersift.errors import LayersiftError
from layersift.experiment.cell import Job, error_path, run_cell
from layersift.files import remedy_of, telling_a_full_disk, write_text
from layersift.processes import count_named
from layersift.progress import Reporter, quieten_libraries

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
