"""While a training goes on: its log, evaluations on held-back rows, early stopping, trackers, closing notices."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from layersift.compat import tracker_class
from layersift.config.fields import json_values, read_as
from layersift.errors import LayersiftError, one_line
from layersift.files import read_json, read_number, write_json, write_text
from layersift.processes import from_all_processes, rank_and_count
from layersift.records.runs import HeldBack, Look
from layersift.statistics.intervals import Runs, difference
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


FEWEST_ENTRIES = 12  # of the log, so that each quarter has three
SURE = 0.01  # how often noise alone may pass for a falling loss
OF_WHOLE_FALL = 0.1  # what the last quarter has to add, by what the whole training gained
QUARTER = 0.25  # of the steps, over which the held-back score is compared
CLASSES_NAMED = 5

LONGER = "train for more --epochs"
LOSS_FALLING = f"the loss was still falling at the end: {LONGER}; held-back rows (--eval-data) show whether it helps"
SCORE_RISING = f"the held-back score was still rising at the end: {LONGER}"


def notices_of(
    directory: Path, looks: Sequence[Look], higher_is_better: bool, name_classes: bool = True
) -> tuple[str, ...]:
    """What should be known of the training in a run directory, each with what to do.

    Args:
        looks: the evaluations during training, as far as the weights that were kept; none without held-back rows.
        higher_is_better: of the looks' outcomes, such as 1 for a right answer.
        name_classes: that are never predicted; not where the finished run is judged on the same rows, which names them.
    """
    said = [LOSS_FALLING] if loss_is_falling([entry["loss"] for entry in read_log(directory)]) else []
    if score_is_rising(looks, higher_is_better):
        said.append(SCORE_RISING)
    if name_classes and looks and looks[-1].never_predicted:
        said.append(never_predicted_notice(looks[-1].never_predicted, "held-back"))
    return tuple(said)


def loss_is_falling(losses: Sequence[float]) -> bool:
    """Whether the last quarter's mean loss lies below that of the quarter before, by more than noise and not by little.

    Noise: Welch's one-sided test over the entries of both quarters. Little: less than a tenth of the fall from the
    first quarter to the last one. Of a log with few entries nothing is said.
    """
    if len(losses) < FEWEST_ENTRIES:
        return False
    values, size = np.asarray(losses, dtype=float), len(losses) // 4
    first, before, last = values[:size], values[-2 * size : -size], values[-size:]
    fall = before.mean() - last.mean()
    if fall <= 0 or fall < OF_WHOLE_FALL * (first.mean() - last.mean()):
        return False
    if before.std() == 0 and last.std() == 0:
        return True
    from scipy import stats  # takes a second to import

    return bool(stats.ttest_ind(before, last, equal_var=False, alternative="greater").pvalue < SURE)


def score_is_rising(looks: Sequence[Look], higher_is_better: bool) -> bool:
    """Whether the last look's outcomes are better than those a quarter of the steps before, by a paired interval."""
    earlier = [look for look in looks if look.share <= looks[-1].share - QUARTER + 1e-9]
    if not earlier or len(looks[-1].outcomes) < 2:
        return False
    apart = difference(_run(looks[-1]), _run(earlier[-1]))
    return apart is not None and not apart.holds_zero and (apart.value > 0) == higher_is_better


def _run(look: Look) -> Runs:
    outcomes = np.array(look.outcomes)
    return Runs({0: float(np.average(outcomes, weights=look.weights or None))}, {0: outcomes}, True, look.weights)


def never_predicted_notice(names: Sequence[str], rows: str) -> str:
    """That classes are never predicted on rows of that name, and what to do."""
    listed = ", ".join(repr(name) for name in names[:CLASSES_NAMED])
    more = f" and {len(names) - CLASSES_NAMED} more" if len(names) > CLASSES_NAMED else ""
    several = "classes" if len(names) > 1 else "class"
    are = "are" if len(names) > 1 else "is"
    return f"{several} {listed}{more} {are} never predicted on the {rows} rows: {LONGER}, or add rows of each"


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
