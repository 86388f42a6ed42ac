"""Where a training goes: its run directory, and what it keeps there until it is finished."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersift.config.fields import read_as, with_current_keys
from layersift.errors import LayersiftError
from layersift.files import begun_otherwise, new_directory, new_outputs, read_json, write_json
from layersift.processes import by_main_process
from layersift.records.runs import RateSearch

CHECKPOINT = re.compile(r"checkpoint-[0-9]{1,9}")
RATE_SEARCH = "learning-rate auto"  # how the rate was found, where it was
BEGUN_WITH = "training.json"  # what an unfinished training was begun with


@dataclass(frozen=True)
class RunOutput:
    """A run directory to be."""

    directory: Path
    resume: bool = False  # carry on from the last checkpoint of an unfinished training
    merge: bool = False  # also save the base model with the adapters merged in, under ``merged``
    sharded: bool = False  # each of several processes keeps but a part of the frozen blocks

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
        with new_outputs("train", self.directory):  # which nobody else is at work in, either
            pass
        if not os.path.lexists(self.partial):
            return
        if not (self.partial / BEGUN_WITH).is_file():
            raise LayersiftError(
                f"{self.partial} stands where a training keeps its checkpoints, and is none of ours (no {BEGUN_WITH}), "
                "so nothing can be resumed; give another --output"
            )
        if not self.resume:
            raise LayersiftError(f"{self.partial} holds an unfinished training; add --resume to carry on, or remove it")

    def kept_search(self) -> RateSearch | None:
        """How the learning rate of the unfinished training to carry on with was found; None where none is begun.

        Raises:
            LayersiftError: it was begun with a rate that was named.
        """
        if not self.resume or not os.path.lexists(self.partial):
            return None
        begun = read_json(self.partial / BEGUN_WITH, "what an unfinished training was begun with")
        if (kept := begun.get(RATE_SEARCH)) is None:
            raise LayersiftError(
                f"{self.partial}: begun with a learning rate that was named or the rule's; resume without "
                "--learning-rate auto"
            )
        return read_as(RateSearch, kept, f"{self.partial / BEGUN_WITH}: {RATE_SEARCH}")

    def require_apart(self, cache: str) -> None:
        """Refuse to keep states where the run directory is to be, which could not be moved there then.

        Args:
            cache: the setting ``activation_cache``.

        Raises:
            LayersiftError: it is that place, or holds it.
        """
        if cache in ("auto", "off"):
            return
        place, run = (Path(os.path.realpath(path)) for path in (cache, self.directory))
        if (place in (run, *run.parents) and not place.exists()) or run in place.parents:
            raise LayersiftError(
                f"activation-cache {cache} and the output {self.directory} are to be apart; give another"
            )

    @contextmanager
    def begun(self, identity: dict[str, Any]) -> Iterator[Path | None]:
        """While active, nobody else trains there; gives the checkpoint to go on from, if there is one.

        Raises:
            LayersiftError: somebody else does; or see :meth:`open`.
        """
        with ExitStack() as held:

            def begin() -> Path | None:
                held.enter_context(new_outputs("train", self.directory))
                return self.open(identity)

            yield by_main_process(begin)

    def open(self, identity: dict[str, Any]) -> Path | None:
        """Start an unfinished training's directory, or find the last checkpoint in it.

        Raises:
            LayersiftError: it was begun with something else.
        """
        identity = json.loads(json.dumps(identity))
        if not os.path.lexists(self.partial):
            with new_directory(self.partial, "train") as place:  # a kill leaves it whole or not there
                write_json(place / BEGUN_WITH, identity)
            return None
        before = with_current_keys(read_json(self.partial / BEGUN_WITH, "what an unfinished training was begun with"))
        if (said := begun_otherwise(before, identity)) is not None:
            raise LayersiftError(f"{self.partial}: begun with {said}; resume with the same, or remove it")
        return last_checkpoint(self.checkpoints)

    def finish(self) -> None:
        """Move it into place, and take away what only an unfinished training needs.

        In this order: a kill between them leaves a finished run with something too much, not one that cannot go on.
        """
        if os.path.lexists(self.directory):
            raise LayersiftError(
                f"{self.directory} has come to be meanwhile; move it away, and the same command with --resume goes on"
            )
        self.partial.rename(self.directory)
        (self.directory / BEGUN_WITH).unlink(missing_ok=True)
        shutil.rmtree(self.directory / self.checkpoints.name, ignore_errors=True)


def last_checkpoint(directory: Path) -> Path | None:
    """The last checkpoint that was written to its end; later ones, cut short by a kill, are removed."""
    ours = [path for path in directory.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    for checkpoint in sorted(ours, key=lambda p: -int(p.name.rpartition("-")[2])):
        with suppress(LayersiftError):
            read_json(checkpoint / "trainer_state.json", "a checkpoint's state")  # what the Trainer writes last
            return checkpoint
        shutil.rmtree(checkpoint)
    return None
