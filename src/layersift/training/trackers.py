"""Other people's trackers: what they log of the layers, and what is said when one fails."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers

from layersift.compat import tracker_class
from layersift.errors import LayersiftError, one_line
from layersift.training.watch import Training


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


def tracker_callbacks(names: Sequence[str]) -> list[Any]:
    """The Trainer's callbacks of trackers; what one raises ends the training in a line that names it."""
    return [_naming(name)() for name in names]


def _naming(name: str) -> Any:
    """A tracker's callback whose every event is wrapped; what is trained so far can be carried on."""
    callback = tracker_class(name)

    def wrapped(event: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(event)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return event(*args, **kwargs)
            except Exception as error:
                kept = "what was trained is kept, and --resume goes on, with the tracker or without"
                raise LayersiftError(f"report-to {name}: {one_line(error)}; {kept}") from error

        return call

    events = [event for event in dir(transformers.TrainerCallback) if event.startswith("on_")]
    return type(callback.__name__, (callback,), {event: wrapped(getattr(callback, event)) for event in events})


class LogImportances(transformers.TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Logs the layers' importances for the trackers before the first step of a training that is not a resumed one."""

    def __init__(self, training: Training, importance: Sequence[float | None]) -> None:
        self._training, self._importance = training, importance

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        known = {f"importance/layer {i:02d}": v for i, v in enumerate(self._importance) if v is not None}
        if known and not state.global_step and self._training.log is not None:
            self._training.log(known)
