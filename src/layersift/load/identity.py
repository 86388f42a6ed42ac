"""What tells one model's files from another's: every byte of them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

PART = 1 << 22
OF_FILES = ("weights:", "sha256:")  # what revisions of models on a disk begin with


def fingerprint(directory: Path) -> str:
    """A hash of a model's configuration and all of its weights."""
    digest = hashlib.sha256()
    for file in [directory / "config.json", *sorted(directory.glob("*.safetensors"))]:
        digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return f"weights:{digest.hexdigest()[:20]}"


def holds(directory: Path, recorded: str) -> bool:
    """Whether a directory holds the model of a recorded fingerprint, written by this version or an earlier one."""
    return recorded == (_ends(directory) if recorded.startswith("sha256:") else fingerprint(directory))


def file_digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal; read again where its size or its time has changed."""
    state = file.stat()
    return _digest(file.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest(file: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while part := data.read(PART):
            digest.update(part)
    return digest.hexdigest()


def _ends(directory: Path) -> str:
    """The hash in records of schema 1: of the weights, only a mebibyte at each end of a file."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for file in sorted(directory.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as data:
            digest.update(data.read(1 << 20))
            data.seek(max(0, size - (1 << 20)))
            digest.update(data.read())
    return f"sha256:{digest.hexdigest()[:20]}"
