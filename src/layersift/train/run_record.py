"""What a run directory says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from layersift.errors import LayersiftError
from layersift.files import read_json, write_json

RECORD_FILE = "layersift.json"
SELECTION_FILE = "selection.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says of itself, beside PEFT's adapter files and the selection."""

    source: dict[str, Any]  # ModelSource
    model_revision: str
    encoder: dict[str, Any]  # kind, classes, max_length, chat_template
    columns: dict[str, str]
    data: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    mask: str
    samples: int
    steps: int
    train_seconds: float
    train_loss: float
    peak_memory_bytes: int | None  # above the loaded model
    trainable_parameters: int
    adapter_bytes: int
    device: str
    versions: dict[str, str]
    command: str

    def save(self, directory: Path) -> None:
        """Write the record into a run directory."""
        write_json(directory / RECORD_FILE, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def load(cls, directory: Path) -> RunRecord:
        """Read the record of a finished run.

        Raises:
            LayersiftError: the directory is not a finished run, or of another version.
        """
        if not directory.is_dir():
            raise LayersiftError(f"{directory}: no such directory; expected the output of `layersift train`")
        values = read_json(directory / RECORD_FILE, "the record of a finished `layersift train`")
        version = values.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise LayersiftError(f"{directory / RECORD_FILE}: schema version {version!r}; expected {SCHEMA_VERSION}")
        if set(values) != {f.name for f in fields(cls)}:
            raise LayersiftError(f"{directory / RECORD_FILE}: not a record of this version of layersift")
        return cls(**values)
