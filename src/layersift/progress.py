"""What long work shows. The library is silent, the command line draws bars, and other libraries draw none."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache


def time_told(seconds: float) -> str:
    """A length of time for people, in the largest unit of which it is one and a half at least."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@lru_cache(maxsize=64)
def warn_once(log: logging.Logger, said: str) -> None:
    """A warning that holds for many rows, in the log the first time it is met."""
    log.warning("%s", said)


class Reporter:
    """Takes messages and progress, and keeps them to itself."""

    draws_bars = False  # whether a stage is seen while it goes on; a log has a line at its start

    def say(self, text: str) -> None:
        """A message for people."""

    @contextmanager
    def stage(self, label: str, total: int, unit: str = "samples") -> Iterator[Callable[[int], None]]:
        """A stretch of work of ``total`` units; the callable takes the units done since it was last called."""
        yield lambda done: None


def quieten_libraries() -> None:
    """Silence the libraries of this process, unless its environment says otherwise."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TQDM_DISABLE", "1"),
    ):
        os.environ.setdefault(name, value)
    # The variable above is read when transformers is imported; bitsandbytes tells of kernels that it did not find.
    for library in ("bitsandbytes", "lm_eval", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|datasets|huggingface_hub)\b")
