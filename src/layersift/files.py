"""Write files so that a reader finds all of one or none of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layersift.errors import LayersiftError, wrap_library_errors

FULL = 1 << 16  # bytes: a disk with less left is full


def remedy_of(error: OSError) -> str:
    """What helps against a fault of the place that files are written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space and give the same command again (train: with --resume)"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "; give an --output that can be written"
    return ""


@contextmanager
def telling_a_full_disk(directory: Path) -> Iterator[None]:
    """Whatever a library makes of a write that failed because the disk is full, it is told as that.

    Raises:
        OSError: ENOSPC, with ``directory`` as the file.
    """
    try:
        yield
    except Exception as error:
        above = next((place for place in (directory, *directory.absolute().parents) if place.is_dir()), Path())
        if shutil.disk_usage(above).free >= FULL or isinstance(error, OSError):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error


def require_new(path: Path, what: str) -> None:
    """Refuse to write over something, or where nothing can be written, before any work is done.

    Raises:
        LayersiftError: ``path`` exists, or cannot be made.
    """
    if path.exists():
        raise LayersiftError(f"{path} exists; {what} overwrites nothing. Remove it or give another --output.")
    above = next((parent for parent in path.absolute().parents if parent.exists()), path)
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise LayersiftError(f"{path} cannot be written: {above} is no directory that can be; give another --output")


@contextmanager
def new_directory(path: Path, what: str) -> Iterator[Path]:
    """A directory to fill, which is moved to ``path`` at the end; of one that is not filled to its end nothing stays.

    Raises:
        LayersiftError: see :func:`require_new`.
    """
    require_new(path, what)
    path.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield place
        place.chmod(0o755)
        place.rename(path)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def require_regular(path: Path, what: str) -> None:
    """Refuse what cannot be read from its beginning to its end: a pipe would never come to one.

    Raises:
        LayersiftError: there is no such file, or it is a directory, a pipe or a device; ``what`` was expected.
    """
    if not path.exists():
        raise LayersiftError(f"{path}: no such file; expected {what}")
    if not path.is_file():
        raise LayersiftError(f"{path}: a directory, a pipe or a device; expected {what}")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` under a temporary name beside ``path`` and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, all of it or nothing."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN is refused, since other readers do not know it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; ``what`` names it in errors.

    Raises:
        LayersiftError: there is no such file, or it holds something else.
    """
    require_regular(path, what)
    with wrap_library_errors(LayersiftError, f"{path}: not {what}"):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise LayersiftError(f"{path}: not {what}; it holds a JSON {type(value).__name__}")
    return value


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the entries that differ. One that a version before did not write yet counts as null."""
    found: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}")
    return found
