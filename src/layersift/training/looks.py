"""Looks at held-back rows while a training is under way, at fixed shares of its steps: what a learning curve is of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from layersift.config.fields import json_values, read_as
from layersift.errors import LayersiftError
from layersift.files import read_json, write_json
from layersift.records.result import Look
from layersift.step.prefix_cache import PrefixCache
from layersift.training.watch import Judge

SHARES = tuple(eighths / 8 for eighths in range(1, 9))
LOOKS_FILE = "looks.json"  # of a run directory


class Looks(transformers.TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Judges the model at each of :data:`SHARES`, and writes what it sees; the training goes on as without.

    Args:
        judge: gives what is to be kept; the shares of two steps may fall on one, which then counts once.
        cache: the training's, which the rows that are looked at are not of.
        directory: of the unfinished training; one that is resumed has what was seen before.
        pausing: around each look, so that it does not count as training.
        heard: is told of the model and of all looks so far; what it answers is whether to end the training.
    """

    def __init__(
        self,
        judge: Judge,
        cache: PrefixCache | None,
        directory: Path,
        pausing: Callable[[], Any],
        heard: Callable[[Any, Sequence[Look]], bool],
    ) -> None:
        self.judge, self._cache, self._pausing, self._heard = judge, cache, pausing, heard
        self._place = directory / LOOKS_FILE
        self._seen = {look.share: look for look in read_looks(directory)}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, where it is time."""
        if state.global_step not in {math.ceil(share * state.max_steps) for share in SHARES}:
            return
        if self._cache is not None:
            self._cache.stand_aside()
        model, share = kwargs["model"], state.global_step / state.max_steps
        with self._pausing(), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            self._seen[share] = self.judge(model, share)
        looks = [self._seen[at] for at in sorted(self._seen)]
        write_json(self._place, {"looks": json_values(looks)})
        with self._pausing():
            # A training that goes on after a kill has seen later ones before.
            if self._heard(model, [look for look in looks if look.share <= share]):
                control.should_training_stop = True


def read_looks(directory: Path) -> tuple[Look, ...]:
    """What has been seen of the training in a run directory; nothing where nobody looked."""
    path = directory / LOOKS_FILE
    if not path.exists():
        return ()
    values = read_json(path, "looks at a training")
    looks = values.get("looks", [])
    if not isinstance(looks, list):
        raise LayersiftError(f"{path}: looks is {repr(looks)[:60]}; a list is needed")
    return tuple(read_as(Look, look, str(path)) for look in looks)
