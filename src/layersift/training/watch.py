"""While a training goes on: a log of its loss, evaluations on held-back rows at fixed steps, and early stopping."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from layersift.config.fields import json_values, read_as
from layersift.errors import LayersiftError
from layersift.files import read_json, read_number, write_json, write_text
from layersift.processes import from_all_processes, rank_and_count
from layersift.records.runs import HeldBack, Look
from layersift.step.activation_cache import ActivationCache

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


class Clock(transformers.TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Seconds that a training took, those before an interruption included as far as its last checkpoint."""

    def __init__(self, partial: Path) -> None:
        self.place = partial / "seconds.json"
        self.before = read_number(self.place, "seconds") if self.place.exists() else 0.0
        self.start()

    def start(self) -> None:
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return float(self.before + time.perf_counter() - self.started)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """While active, what is done does not count."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_json(self.place, {"seconds": self.seconds})


@dataclass
class Training:
    """A training while it goes on: what its callbacks read."""

    directory: Path  # where it stands until it is finished
    watch: Watch
    clock: Clock
    cache: ActivationCache | None = None
    log: Callable[[dict[str, float]], None] | None = None  # into the trackers


class LossLog(transformers.TrainerCallback):  # type: ignore[misc]
    """Writes the loss at even steps into the run directory, a JSON object a line, and tells it now and then."""

    def __init__(self, training: Training) -> None:
        self._place, self._tell, self._entries = training.directory / LOG_FILE, training.watch.tell, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Of a training that is resumed, what was done after its checkpoint is done again."""
        if self._place.exists() and state.is_world_process_zero:
            kept = [entry for entry in read_log(self._place.parent) if entry["step"] <= state.global_step]
            write_text(self._place, "".join(json.dumps(entry) + "\n" for entry in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One entry."""
        if "loss" not in (logs or {}) or not state.is_world_process_zero:
            return
        entry = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate", "epoch") if name in logs}
        with self._place.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step} | entry) + "\n")
        self._entries += 1
        if self._tell is not None and self._entries % EVERY == 0:
            self._tell(f"step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.4f}")


SHARES = tuple(eighths / 8 for eighths in range(1, 9))
LOOKS_FILE = "looks.json"  # of a run directory


class Looks(transformers.TrainerCallback):  # type: ignore[misc]
    """Evaluates the model at each of :data:`SHARES`, writes what it sees, and stops the training early.

    Without patience the training goes on as without. With it, a training ends after so many evaluations in a row that
    brought no better score, and what was trained is kept as it was at the best one. transformers' EarlyStoppingCallback
    wants the Trainer's own evaluation, and a checkpoint at each.
    """

    def __init__(self, training: Training) -> None:
        self._training, self._watch = training, training.watch
        self._best_weights = training.directory / BEST_FILE
        self._by_share = {look.share: look for look in read_looks(training.directory)}  # of one that is resumed, too
        self._looks: list[Look] = []  # as far as the training is

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate, where it is time; the shares of two steps may fall on one, which then counts once."""
        if self._watch.judge is None or state.global_step not in {math.ceil(s * state.max_steps) for s in SHARES}:
            return
        if self._training.cache is not None:
            self._training.cache.stand_aside()
        model, share = kwargs["model"], state.global_step / state.max_steps
        cuda = [model.device] if model.device.type == "cuda" else []
        with self._training.clock.pausing(), torch.random.fork_rng(cuda):
            # Processes that would round otherwise are to stop at the same step.
            self._by_share[share] = from_all_processes(self._watch.judge(model, share))[0]
        looks = [self._by_share[at] for at in sorted(self._by_share)]
        if state.is_world_process_zero:
            write_json(self._training.directory / LOOKS_FILE, {"looks": json_values(looks)})
        self._looks = [look for look in looks if look.share <= share]  # after a kill there are later ones
        self._tell(self._looks[-1])
        if self._watch.patience is not None:
            with self._training.clock.pausing():
                control.should_training_stop |= self._keep_best(model, self._watch.patience)

    def _tell(self, look: Look) -> None:
        metric, score = self._watch.metric, look.score
        if self._watch.tell is not None:
            said = "undefined" if score is None else f"{score:.4f}"
            self._watch.tell(f"after {look.share:.0%} of the steps: {metric} {said}")
        if self._watch.report_to and self._training.log is not None and score is not None:
            self._training.log({f"eval_{metric}": score})  # as the Trainer names them; trackers make eval/ of it

    def _keep_best(self, model: Any, patience: int) -> bool:
        """Keep what is trained where the last score is the best one; whether the best one is too long ago."""
        best, last = self._best(), len(self._looks) - 1
        if best == last and rank_and_count()[0] == 0:
            self._best_weights.parent.mkdir(parents=True, exist_ok=True)
            trained = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
            save_file(trained, self._best_weights)
        return last - (-1 if best is None else best) >= patience

    def _best(self) -> int | None:
        """Place of the first look with the best score."""
        sign = 1 if self._watch.higher_is_better else -1
        scored = [(sign * look.score, -place) for place, look in enumerate(self._looks) if look.score is not None]
        return -max(scored)[1] if scored else None

    def restore(self, model: Any) -> None:
        """Give the model what was trained, as it was at the best look."""
        if not self._best_weights.exists():
            return
        values, parameters = load_file(self._best_weights), dict(model.named_parameters())
        for name, value in values.items():
            parameters[name].data.copy_(value)
        self._best_weights.unlink()

    @property
    def kept(self) -> Sequence[Look]:
        """Those as far as the weights that are kept: with patience up to the best one."""
        best = None if self._watch.patience is None else self._best()
        return self._looks if best is None else self._looks[: best + 1]

    @property
    def stopped(self) -> str | None:
        """Of which step the adapters are; None without patience, or where no score was defined."""
        best = self._best()
        if self._watch.patience is None or best is None:
            return None
        look, last = self._looks[best], self._looks[-1]
        what = f"{self._watch.metric} {look.score:.4f}"
        return f"the best of {len(self._looks)} looks: after {look.share:.1%} ({what}), ended at {last.share:.1%}"


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
