"""Other people's trackers: what they are told of the layers beside the Trainer's own entries, and what is said when one
fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from layersift.errors import LayersiftError, frames_of, one_line
from layersift.records.selection import Selection

TABLE = "layers"  # its name there
COLUMNS = ["layer", "importance", "adapted"]


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not there.

    Raises:
        LayersiftError: that; the message says what to install.
    """
    for name in names:
        if find_spec(name) is None:
            raise LayersiftError(f"report-to {name}: the package is not installed; pip install {name}")


@contextmanager
def logs_beside(partial: Path) -> Iterator[None]:
    """While active, TensorBoard's files go into the run directory, unless the environment says where."""
    name = "TENSORBOARD_LOGGING_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(partial / "logs")
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def naming_the_tracker(names: Sequence[str]) -> Iterator[None]:
    """While active, what a tracker raises ends the training in a line that names it, and not as a fault of ours.

    Raises:
        LayersiftError: that; what was trained so far is kept, and can be carried on.
    """
    try:
        yield
    except LayersiftError:
        raise
    except Exception as error:
        for name in names:
            if any(type(f.f_locals.get("self")) is INTEGRATION_TO_CALLBACK[name] for f in frames_of(error)):
                kept = "what was trained is kept, and --resume goes on, with the tracker or without"
                raise LayersiftError(f"report-to {name}: {one_line(error)}; {kept}") from error
        raise


class LayersTold(transformers.TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Tells trackers the layers' importances before the first step: as metrics, which all of them draw, and as a table.

    The table says which layers are adapted, too.
    """

    def __init__(self, log: Callable[[dict[str, float]], None], selection: Selection, trackers: Sequence[Any]) -> None:
        self._log, self._selection, self._trackers = log, selection, trackers

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Both, of a training that is not a resumed one."""
        if state.global_step:
            return
        importance = self._selection.importance
        known = {f"importance/layer {i:02d}": v for i, v in enumerate(importance) if v is not None}
        if known:
            self._log(known)
        adapted = set(self._selection.selected_layers)
        rows: list[list[Any]] = [[i, v, i in adapted] for i, v in enumerate(importance)]
        for tracker in self._trackers:
            if (tell := TABLES.get(type(tracker))) is not None:
                tell(tracker, rows)


def _tensorboard(tracker: Any, rows: list[list[Any]]) -> None:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    tracker.tb_writer.add_text(TABLE, text, 0)


def _wandb(tracker: Any, rows: list[list[Any]]) -> None:
    import wandb  # type: ignore[import-not-found]

    wandb.log({TABLE: wandb.Table(columns=COLUMNS, data=rows)}, commit=False)


def _trackio(tracker: Any, rows: list[list[Any]]) -> None:
    import trackio  # type: ignore[import-not-found]

    trackio.log({TABLE: trackio.Table(columns=COLUMNS, data=rows)}, step=0)


def _mlflow(tracker: Any, rows: list[list[Any]]) -> None:
    import mlflow  # type: ignore[import-not-found]

    columns = {column: [row[i] for row in rows] for i, column in enumerate(COLUMNS)}
    mlflow.log_table(columns, artifact_file=f"{TABLE}.json")


TABLES: dict[type, Callable[[Any, list[list[Any]]], None]] = {
    INTEGRATION_TO_CALLBACK["tensorboard"]: _tensorboard,
    INTEGRATION_TO_CALLBACK["wandb"]: _wandb,
    INTEGRATION_TO_CALLBACK["trackio"]: _trackio,
    INTEGRATION_TO_CALLBACK["mlflow"]: _mlflow,
}
