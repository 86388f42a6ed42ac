"""Write files so that a reader finds all of one or none of it."""

from __future__ import annotations

import errno
import getpass
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from layersift.errors import LayersiftError, wrap_library_errors

LONGEST_NAME = 200  # bytes, of the 255 that file systems take: what is being written has more behind its name
FULL = 1 << 16  # bytes: a disk with less left is full


def remedy_of(error: OSError) -> str:
    """What helps against a fault of the place that files are written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space and give the same command again (train: with --resume)"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "; see who may read and write there, or give another place"
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
    if path == Path():
        raise LayersiftError(
            f"{what} needs the name of a new file or directory as its output, not the current directory"
        )
    if os.path.lexists(path):
        kind = "is a link to nothing" if path.is_symlink() and not path.exists() else "exists"
        raise LayersiftError(f"{path} {kind}; {what} overwrites nothing. Remove it or give another --output.")
    above = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), path)
    if str(path).startswith("~"):
        raise LayersiftError(f"{path}: there is no such user; give another --output, or ./{path}")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise LayersiftError(f"{path}: a name of more than {LONGEST_NAME} bytes; give a shorter --output")
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise LayersiftError(f"{path} cannot be written: {above} is no directory that can be; give another --output")


@contextmanager
def alone(lock: Path, place: Path) -> Iterator[None]:
    """While active, no other process works in ``place``; the system lets go of it when this one ends, however it does.

    Raises:
        LayersiftError: another one does.
    """
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        raise LayersiftError(f"{place}: another process is at work in it; wait for it, or stop it") from None
    try:
        yield
    finally:
        held.release()


@contextmanager
def new_outputs(what: str, *paths: Path) -> Iterator[None]:
    """While active, these outputs to be are this process's alone: nothing is there, and no two are the same.

    Raises:
        LayersiftError: see :func:`require_new` and :func:`alone`; or one is another one, or lies in it.
    """
    places = [(path, Path(os.path.realpath(path))) for path in paths]
    for (path, one), (other, two) in itertools.combinations(places, 2):
        if one == two or one in two.parents or two in one.parents:
            raise LayersiftError(f"{path} and {other} are outputs of one command; give each a place of its own")
    with ExitStack() as held:
        for path, place in places:
            require_new(path, what)
            held.enter_context(alone(_lock_of(place), path))
            require_new(path, what)  # it may have been written while this process came to it
        yield


def _lock_of(place: Path) -> Path:
    """Where the lock of an output lies: apart from it, so that nothing is left beside it."""
    return (
        private_directory("locks")
        / f"{hashlib.sha256(str(place).encode(errors='surrogateescape')).hexdigest()[:32]}.lock"
    )


def private_directory(what: str) -> Path:
    """A directory of this user's among the temporary ones."""
    directory = Path(tempfile.gettempdir(), f"layersift-{what}-{getpass.getuser()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


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
        require_new(path, what)
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


def write_bytes(path: Path, content: bytes, new: bool = False) -> None:
    """Write ``content`` under a temporary name beside ``path`` and move it into place.

    Args:
        new: nothing may be there yet.

    Raises:
        LayersiftError: something is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        if new:
            _move_to_new(Path(temporary), path)
        else:
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _move_to_new(temporary: Path, path: Path) -> None:
    """Move a file to where nothing may be; a link to a file is refused where there is one, as moving it is not."""
    try:
        os.link(temporary, path)
        temporary.unlink()
    except FileExistsError:
        raise LayersiftError(
            f"{path} has come to be meanwhile, and is not overwritten; give another --output"
        ) from None
    except OSError:  # a disk that has no links
        require_new(path, "layersift")
        os.replace(temporary, path)


def write_text(path: Path, text: str, new: bool = False) -> None:
    """Write ``text`` as UTF-8, all of it or nothing; see :func:`write_bytes`."""
    write_bytes(path, text.encode(), new)


def write_json(path: Path, value: Any, new: bool = False) -> None:
    """Write ``value`` as indented JSON; NaN is refused, since other readers do not know it. See :func:`write_bytes`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", new)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; ``what`` names it in errors.

    Raises:
        LayersiftError: there is no such file, or it holds something else.
    """
    require_regular(path, what)
    with wrap_library_errors(LayersiftError, f"{path}: not {what}", "give the file as it was written"):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise LayersiftError(f"{path}: not {what}; it holds a JSON {type(value).__name__}")
    return value


def read_number(path: Path, key: str) -> float:
    """The number that a JSON object of one key holds.

    Raises:
        LayersiftError: it holds something else.
    """
    values = read_json(path, f"a number called {key}")
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < sys.float_info.max:
        raise LayersiftError(f"{path}: {key} is {repr(value)[:60]}; a number is needed, or no such file")
    return float(value)


def begun_otherwise(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """What an output was begun with otherwise, in words; None where it is the same.

    An entry that an earlier version did not write yet counts as null.
    """
    changed = _differences(before, after)
    if not changed:
        return None
    said = f"other {', '.join(changed)}"
    return said if any(changed.values()) else f"{said}: an earlier version of layersift began it, and wrote none"


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> dict[str, bool]:
    """Dotted names of the entries that differ, and whether each was written before."""
    names: dict[str, bool] = {}
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            names |= _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            names[f"{prefix}{name}"] = name in before
    return names
