"""Where a training goes: its run directory, and what it keeps there until it is finished."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersift.errors import LayersiftError
from layersift.files import differences, new_directory, read_json, require_new, write_json

BEGUN_WITH = "training.json"  # what an unfinished training was begun with


@dataclass(frozen=True)
class RunOutput:
    """A run directory to be."""

    directory: Path
    resume: bool = False  # carry on from the last checkpoint of an unfinished training
    merge: bool = False  # also save the base model with the adapters merged in, under ``merged``

    @property
    def partial(self) -> Path:
        """Where an unfinished training keeps its checkpoints."""
        return self.directory.with_name(self.directory.name + ".partial")

    @property
    def checkpoints(self) -> Path:
        """The Trainer's own directory."""
        return self.partial / "checkpoints"

    def require_free(self) -> None:
        """Refuse to write over a finished run, or to lose an unfinished one.

        Raises:
            LayersiftError: the directory exists, or an unfinished training does and ``resume`` is off.
        """
        if self.resume and self.directory.exists():
            raise LayersiftError(f"{self.directory} is finished; there is nothing to resume")
        require_new(self.directory, "train")
        if self.partial.exists() and not self.resume:
            raise LayersiftError(f"{self.partial} holds an unfinished training; add --resume to carry on, or remove it")

    def open(self, identity: dict[str, Any]) -> Path | None:
        """Start an unfinished training's directory, or find the last checkpoint in it.

        Raises:
            LayersiftError: it was begun with something else.
        """
        identity = json.loads(json.dumps(identity))
        if not self.partial.exists():
            with new_directory(self.partial, "train") as place:  # a kill leaves it whole or not there
                write_json(place / BEGUN_WITH, identity)
            return None
        if not (self.partial / BEGUN_WITH).is_file():
            raise LayersiftError(
                f"{self.partial} does not say what it was begun with ({BEGUN_WITH} is missing), so nothing can be "
                "resumed; remove it"
            )
        before = read_json(self.partial / BEGUN_WITH, "what an unfinished training was begun with")
        if changed := differences(before, identity):
            raise LayersiftError(
                f"{self.partial}: begun with other {', '.join(changed)}; resume with the same, or remove it"
            )
        return last_checkpoint(self.checkpoints)

    def finish(self) -> None:
        """Move it into place, and take away what only an unfinished training needs.

        In this order: a kill between them leaves a finished run with something too much, not one that cannot go on.
        """
        self.partial.rename(self.directory)
        (self.directory / BEGUN_WITH).unlink(missing_ok=True)
        shutil.rmtree(self.directory / self.checkpoints.name, ignore_errors=True)


def last_checkpoint(directory: Path) -> Path | None:
    """The last checkpoint that was written to its end; later ones, cut short by a kill, are removed."""
    for checkpoint in sorted(directory.glob("checkpoint-*"), key=lambda p: -int(p.name.rpartition("-")[2])):
        with suppress(LayersiftError):
            read_json(checkpoint / "trainer_state.json", "a checkpoint's state")  # what the Trainer writes last
            return checkpoint
        shutil.rmtree(checkpoint)
    return None
