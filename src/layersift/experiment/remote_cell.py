"""A cell that is trained on another machine: what it needs goes there, and what it gives comes back, by value."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from layersift.config.fields import read_as
from layersift.config.recipe import Recipe
from layersift.config.train import TrainSettings
from layersift.errors import LayersiftError, listed, one_line
from layersift.experiment.cell import (
    SELECTION,
    VARIANTS,
    Job,
    error_path,
    require_own,
    result_path,
    rows_of,
    run_cell,
)
from layersift.experiment.grid import fingerprints
from layersift.files import private_directory, write_bytes, write_text
from layersift.models.source import file_digest
from layersift.progress import Reporter, quieten_libraries
from layersift.provenance import versions

SENT_AT_MOST = 256 << 20  # bytes of a model or of data that go along with the cells; what is larger has to be there
TOLD = "layersift"  # whose warnings come back

Files = Mapping[str, bytes]  # by path, from their directory on; a single file by its name alone
Fetch = Callable[[int], Files]  # the content of an input by its place among them


@dataclass(frozen=True)
class Input:
    """A file or a directory that a recipe names."""

    given: str  # as the recipe names it
    path: str  # where it lies on the machine that the experiment was started on
    size: int
    digest: str | None  # of the content; None where it is too large to go along

    @classmethod
    def of(cls, given: str) -> Input:
        """The input that lies here."""
        path = Path(given).expanduser().absolute()
        size = _size_of(path)
        return cls(given, str(path), size, _digest_of(path) if size <= SENT_AT_MOST else None)

    def pack(self) -> Files:
        """Its content."""
        return pack(Path(self.path))


@dataclass(frozen=True)
class Order:
    """A cell to be carried out elsewhere."""

    recipe: Recipe
    job: Job
    inputs: tuple[Input, ...]
    contents: Mapping[str, Any]  # fingerprints of the model and the rows that the grid is of
    selection: bytes | None  # the file that the grid's selection is kept in
    threads: int
    arguments: tuple[str, ...]  # the command line that it is carried out for, which records name


@dataclass(frozen=True)
class Delivery:
    """What a cell gave."""

    error: str | None = None  # one line on why it failed
    trace: str | None = None  # what Python says of an error that nobody expected
    result: bytes = b""
    run: Files | None = None  # its run directory, where that is kept
    warnings: tuple[tuple[str, int, str], ...] = ()  # logger, level and message


def inputs_of(recipe: Recipe) -> tuple[Input, ...]:
    """The files and directories of this machine that a recipe's cells read; Hub ids are none."""
    named = [
        recipe.model.name,
        recipe.data.data,
        recipe.data.chat_template,
        recipe.compare.retention,
        *(source for source, _ in recipe.evaluate.sources().values()),
    ]
    given = [name for name in dict.fromkeys(named) if name is not None and Path(name).expanduser().exists()]
    return tuple(map(Input.of, given))


def place_inputs(inputs: Sequence[Input], fetch: Fetch) -> dict[str, str]:
    """Where the inputs lie on this machine, by what the recipe calls them.

    Raises:
        LayersiftError: one is neither here nor small enough to go along.
    """
    return {one.given: str(_place(one, number, fetch)) for number, one in enumerate(inputs)}


def require_inputs(inputs: Sequence[Input]) -> None:
    """Refuse a machine that lacks an input that does not go along.

    Raises:
        LayersiftError: that.
    """
    for one in inputs:
        if one.digest is None and not Path(one.path).exists():
            raise LayersiftError(
                f"{socket.gethostname()} has no {one.path}, and {one.size / 1e9:.1f} GB are too much to send (at most "
                f"{SENT_AT_MOST >> 20} MiB); put it there, or give the id of a model or data on the Hub"
            )


def require_versions(wanted: Mapping[str, str]) -> None:
    """Refuse a machine whose libraries are others than those that the experiment was started with.

    Raises:
        LayersiftError: that.
    """
    here = versions()
    others = [f"{name} {here.get(name)} instead of {version}" for name, version in wanted.items()]
    others = [said for said, (name, version) in zip(others, wanted.items(), strict=True) if here.get(name) != version]
    if others:
        raise LayersiftError(f"{socket.gethostname()} has {listed(others)}; install the same versions there")


def _place(one: Input, number: int, fetch: Fetch) -> Path:
    path = Path(one.path)
    if one.digest is None:
        require_inputs([one])
        return path
    if path.exists() and _size_of(path) == one.size and _digest_of(path) == one.digest:
        return path
    target = private_directory("inputs") / one.digest[:20] / path.name
    with FileLock(f"{target.parent}.lock"):
        if not target.exists():
            unpack(fetch(number), target)
    return target


def _files_under(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in _files_under(path))


def _name_under(path: Path, file: Path) -> str:
    return file.relative_to(path).as_posix() if file != path else ""


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    for file in _files_under(path):
        digest.update(f"{_name_under(path, file)} {file_digest(file)}\n".encode())
    return digest.hexdigest()


def pack(path: Path) -> dict[str, bytes]:
    """The content of a directory by the names in it; of a file by no name."""
    return {_name_under(path, file): file.read_bytes() for file in _files_under(path)}


def unpack(files: Files, target: Path) -> None:
    """Write what :func:`pack` gave to ``target``, where nothing is yet; all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as directory:
        place = Path(directory, target.name)
        for name, content in files.items():
            file = place / name if name else place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        place.rename(target)


def carry_out(order: Order, fetch: Fetch) -> Delivery:
    """Train and judge a cell on this machine, and give what it came to. Of what it writes here nothing stays."""
    quieten_libraries()
    sys.argv = list(order.arguments)
    torch.set_num_threads(order.threads)
    places: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="layersift-") as directory, _kept_warnings() as kept:
        try:
            places |= place_inputs(order.inputs, fetch)
            delivery = _carried_out(order, _moved(order.recipe, places), Path(directory), places)
        except LayersiftError as error:
            delivery = Delivery(str(error))
        except OSError as error:
            delivery = Delivery(f"{error.filename or socket.gethostname()}: {error.strerror or error}")
        except Exception as error:
            delivery = Delivery(f"{type(error).__name__}: {one_line(error)}", traceback.format_exc())
    told = None if delivery.error is None else _as_named(delivery.error, places)
    return replace(delivery, error=told, warnings=tuple(kept))


def _carried_out(order: Order, recipe: Recipe, output: Path, places: Mapping[str, str]) -> Delivery:
    job = order.job
    _require_same(order.contents, fingerprints(recipe, rows_of(json.dumps(recipe.to_json())).test))
    if order.selection is not None:
        write_bytes(output / SELECTION, order.selection)
    run_cell(recipe, job, output, Reporter())
    result = result_path(output, job.cell, recipe.train).read_bytes()
    if job.keep is None or not job.cell.mask:
        return Delivery(result=result)
    files = pack(output / VARIANTS / job.keep)
    # A run directory names its model and its data, and is going to be read where the user has them.
    for ending, names in ((".md", places), (".json", {json.dumps(given)[1:-1]: at for given, at in places.items()})):
        for name, content in files.items():
            if name.endswith(ending):
                files[name] = _as_named(content.decode(), names).encode()
    return Delivery(result=result, run=files)


def _moved(recipe: Recipe, places: Mapping[str, str]) -> Recipe:
    """The recipe with its inputs where they lie on this machine."""

    def at(name: str | None) -> str | None:
        return None if name is None else places.get(name, name)

    values = recipe.to_json()
    sources = {name: f"{at(source)}@{split}" for name, (source, split) in recipe.evaluate.sources().items()}
    values["model"]["name"] = at(recipe.model.name)
    values["data"] |= {"data": at(recipe.data.data), "chat_template": at(recipe.data.chat_template)}
    values["evaluate"]["data"] = sources.get("") if set(sources) <= {""} else sources
    values["compare"]["retention"] = at(recipe.compare.retention)
    return read_as(Recipe, values, "the recipe")


def _as_named(text: str, places: Mapping[str, str]) -> str:
    """A text with the inputs as the recipe names them, in the place of where they lie on this machine."""
    given = {place: name for name, place in places.items()}
    either = "|".join(map(re.escape, sorted(given, key=len, reverse=True)))
    return re.sub(rf"(?<![\w./-])({either})(?![\w-])(?!\.\w)", lambda found: given[found[1]], text) if given else text


def _require_same(wanted: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse another model or other rows than those that the grid is of.

    Raises:
        LayersiftError: that.
    """
    others = [name for name in here if name in wanted and wanted[name] != here[name]]
    if others:
        raise LayersiftError(
            f"{socket.gethostname()} has other contents ({listed(others)}) than the machine that this was started on; "
            "bring both to the same files or revision, with the same libraries"
        )


@contextmanager
def _kept_warnings() -> Any:
    """While active, what the library logs is kept in the list that this gives."""
    kept: list[tuple[str, int, str]] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append((record.name, record.levelno, record.getMessage()))

    handler, library = Keeping(logging.WARNING), logging.getLogger(TOLD)
    library.addHandler(handler)
    try:
        yield kept
    finally:
        library.removeHandler(handler)


def accept(delivery: Delivery, job: Job, output: Path, shared: TrainSettings) -> str | None:
    """Write what a cell gave under the grid's output, its result last; of one that failed, why.

    Returns:
        One line on why it failed, or None.
    """
    log = error_path(output, job.cell, shared)
    for name, level, message in delivery.warnings:
        logging.getLogger(name).log(level, "%s", message)
    if delivery.error is not None:
        if delivery.trace is None:
            return delivery.error
        write_text(log, delivery.trace)
        return f"{delivery.error} (see {log})"
    if delivery.run is not None and job.keep is not None:
        try:
            _keep_run(delivery.run, output / VARIANTS / job.keep, job)
        except LayersiftError as error:
            return str(error)
    write_bytes(result_path(output, job.cell, shared), delivery.result)
    log.unlink(missing_ok=True)
    return None


def _keep_run(files: Files, directory: Path, job: Job) -> None:
    """Write a run directory; one of the same cell, of a start that ended before it was judged, makes room."""
    if directory.exists():
        require_own(directory, job.cell)
        shutil.rmtree(directory)
    unpack(files, directory)
