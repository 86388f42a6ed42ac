"""While a training goes on: a log of its loss, evaluations on held-back rows at fixed steps, and early stopping."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from layersift.config.fields import json_values, read_as
from layersift.errors import LayersiftError
from layersift.files import read_json, write_json, write_text
from layersift.records.result import Look
from layersift.records.run_record import HeldBack
from layersift.step.prefix_cache import PrefixCache

LOG_FILE = "log.jsonl"  # of a run directory
BEST_FILE = "best.safetensors"  # of an unfinished training: what was trained, at its best look
ENTRIES = 50  # of the log, over a whole training
EVERY = 5  # entries from one line for people to the next

Judge = Callable[[Any, float], Look]  # of the model, at a share of its training


@dataclass(frozen=True)
class Watch:
    """How a training is watched; none of it changes a step.

    Early stopping does: it ends the training, and what is written is what scored best.
    """

    judge: Judge | None = None  # looks at the model at fixed shares of the steps
    metric: str = "score"  # what it scores, for people
    patience: int | None = None  # so many looks in a row without a better score end the training
    higher_is_better: bool = True  # of the judge's score
    report_to: tuple[str, ...] = ()  # trackers by their names
    tell: Callable[[str], None] | None = None  # a line now and then
    rows: str | None = None  # digest of the examples that the judge looks at
    conclude: Callable[[Any, Path], HeldBack] | None = None  # judges what was trained, and writes into its directory
    notices: tuple[str, ...] = ()  # what should be known of these rows


def read_log(directory: Path) -> list[dict[str, Any]]:
    """The entries of a run directory's log; a line that a kill has cut short is none."""
    path, entries = directory / LOG_FILE, []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("step"), int) and "loss" in entry:
                entries.append(entry)
    return entries


class LossLog(transformers.TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Writes the loss at even steps into the run directory, a JSON object a line, and tells it now and then."""

    def __init__(self, directory: Path, tell: Callable[[str], None] | None) -> None:
        self._place, self._tell, self._entries = directory / LOG_FILE, tell, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Of a training that is resumed, what was done after its checkpoint is done again."""
        if self._place.exists():
            kept = [entry for entry in read_log(self._place.parent) if entry["step"] <= state.global_step]
            write_text(self._place, "".join(json.dumps(entry) + "\n" for entry in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One entry."""
        if "loss" not in (logs or {}):
            return
        entry = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate", "epoch") if name in logs}
        with self._place.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step} | entry) + "\n")
        self._entries += 1
        if self._tell is not None and self._entries % EVERY == 0:
            self._tell(f"step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.4f}")


class Hearing:
    """What follows from each look: it is told, and where no better score came for a while, the training ends.

    With patience, what was trained is kept as it was at the best look.
    """

    def __init__(self, watch: Watch, directory: Path) -> None:
        self.watch, self._place = watch, directory / BEST_FILE
        self.log: Callable[[dict[str, float]], None] | None = None  # of the trackers
        self._looks: list[Look] = []

    def __call__(self, model: Any, looks: Sequence[Look]) -> bool:
        """Whether to end the training after these looks, the last of which is of ``model`` as it is."""
        self._looks, score = list(looks), looks[-1].score
        if self.watch.tell is not None:
            said = "undefined" if score is None else f"{score:.4f}"
            self.watch.tell(f"after {looks[-1].share:.0%} of the steps: {self.watch.metric} {said}")
        if self.watch.report_to and self.log is not None and score is not None:
            self.log({f"eval_{self.watch.metric}": score})  # as the Trainer names them; trackers make eval/ of it
        if self.watch.patience is None:
            return False
        best = self._best()
        if best == len(looks) - 1:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            trained = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
            save_file(trained, self._place)
        return len(looks) - 1 - (-1 if best is None else best) >= self.watch.patience

    def _best(self) -> int | None:
        """Place of the first look with the best score."""
        sign = 1 if self.watch.higher_is_better else -1
        scored = [(sign * look.score, -place) for place, look in enumerate(self._looks) if look.score is not None]
        return -max(scored)[1] if scored else None

    def restore(self, model: Any) -> None:
        """Give the model what was trained, as it was at the best look."""
        if not self._place.exists():
            return
        values, parameters = load_file(self._place), dict(model.named_parameters())
        for name, value in values.items():
            parameters[name].data.copy_(value)
        self._place.unlink()

    @property
    def kept_looks(self) -> Sequence[Look]:
        """Those as far as the weights that are kept: with patience up to the best one."""
        best = None if self.watch.patience is None else self._best()
        return self._looks if best is None else self._looks[: best + 1]

    @property
    def stopped(self) -> str | None:
        """Of which step the adapters are; None without patience, or where no score was defined."""
        best = self._best()
        if self.watch.patience is None or best is None:
            return None
        look, last = self._looks[best], self._looks[-1]
        what = f"{self.watch.metric} {look.score:.4f}"
        return f"the best of {len(self._looks)} looks: after {look.share:.1%} ({what}), ended at {last.share:.1%}"


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
