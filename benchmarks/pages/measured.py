"""What has been trained of each task, and how the protocol reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import stats

from layersift.experiment.choices import ALL, BASE, LAST, Choice
from layersift.experiment.judge import Trained, runs_of
from layersift.files import read_json
from layersift.report.tables import difference_text
from layersift.statistics.intervals import CONFIDENCE, POWER, Interval, Unit, difference
from trained import compared, together

RESULTS = Path(__file__).resolve().parents[1] / "results"
CKA = "cka"
HALVES = {LAST: "the last half", CKA: "CKA's half"}
HELD, HELD_OVER_TASKS = 0.02, 0.01  # how much worse than all layers, of one task (in points or nats) and over tasks


@dataclass(frozen=True)
class Task:
    """A task that a model was trained on, once or on two machines."""

    name: str
    model: str
    places: tuple[str, ...]
    trainer: str = "strategies.py"

    @property
    def done(self) -> bool:
        """Whether its tables have been made."""
        return all((RESULTS / place / "compare.json").exists() for place in self.places)

    @property
    def command(self) -> str:
        """What trains it, of the first place."""
        data = "DATA" if self.trainer == "strategies.py" else "SHARED DATA MODELS"
        return f"python benchmarks/{self.trainer} {data} --only {self.places[0].split('/')[1]}"

    @cached_property
    def _compared(self) -> list[tuple[dict[str, Choice], Trained]]:
        return [compared(RESULTS / place) for place in self.places]

    @property
    def choices(self) -> dict[str, Choice]:
        """The rows that every one of its tables has, by name."""
        first, *others = (choices for choices, _ in self._compared)
        return {name: choice for name, choice in first.items() if all(name in other for other in others)}

    @cached_property
    def trained(self) -> Trained:
        """All trainings; of two machines as seeds of their own, since each rounds otherwise."""
        first, *others = (trained for _, trained in self._compared)
        return together(first, others[0]) if others else first

    @property
    def parts(self) -> list[Trained]:
        """Those of each machine."""
        return [trained for _, trained in self._compared]

    @property
    def unit(self) -> Unit:
        """How its score is read."""
        return self.trained.unit

    def find(self, name: str, budget: float | None = None) -> Choice | None:
        """A row, for equal epochs or for a share of all layers' FLOPs."""
        return next((c for c in self.choices.values() if c.name == name and c.budget == budget), None)

    def apart(self, one: Choice | None, other: Choice | None, trained: Trained | None = None) -> Interval | None:
        """The paired difference of two rows; None where one was not trained."""
        if one is None or other is None:
            return None
        trained = trained or self.trained
        return difference(runs_of(one, trained), runs_of(other, trained))

    def from_all(self, name: str) -> Interval | None:
        """Of a row from all layers, both trained for the recipe's epochs."""
        return self.apart(self.find(name), self.find(ALL))

    @property
    def budgets(self) -> list[float]:
        """The shares of all layers' FLOPs that rows were trained for."""
        return sorted({c.budget for c in self.choices.values() if c.budget is not None})

    @property
    def ways(self) -> dict[str, Choice]:
        """Every row but the base model; one whose budget is its own length is the one without a budget."""
        return {
            name: choice
            for name, choice in self.choices.items()
            if choice.name != BASE and (choice.budget is None or not self._is_plain(choice))
        }

    def _is_plain(self, choice: Choice) -> bool:
        plain = self.find(choice.name)
        return plain is not None and plain.variants == choice.variants

    @property
    def over(self) -> str:
        """How many seeds and rows its intervals are over."""
        found = self.from_all(LAST)
        return "" if found is None else found.over


TASKS = (
    Task("TREC", "MiniLM", ("strategies/minilm-trec", "strategies/minilm-trec-again")),
    Task("SST-2", "MiniLM", ("strategies/minilm-sst2",)),
    Task("digits", "a small ViT", ("strategies/vit-digits",)),
    Task("docstrings", "MiniLM", ("evidence/minilm-docstrings",), "evidence.py"),
    Task("steps", "MiniLM", ("evidence/minilm-steps",), "evidence.py"),
    Task("BBC", "MiniLM", ("evidence/minilm-bbc",), "evidence.py"),
    Task("GSM8K", "SmolLM2", ("strategies/smollm2-gsm8k-tuned",)),
)


def done() -> list[Task]:
    """The tasks that have been trained."""
    return [task for task in TASKS if task.done]


def classified(tasks: Sequence[Task]) -> list[Task]:
    """Those that are judged in points, so that a mean over them says something."""
    return [task for task in tasks if task.unit.name == "points"]


def over_tasks(found: Sequence[Interval | None]) -> Interval | None:
    """The mean of tasks' differences, with Student's interval from their spread; None of fewer than two."""
    values = [one.value for one in found if one is not None]
    return mean_of(values, "tasks") if len(values) > 1 else None


def mean_of(values: Sequence[float], of: str) -> Interval:
    """The mean of several figures, with Student's interval from their spread."""
    array = np.array(values)
    error = float(array.std(ddof=1)) / np.sqrt(len(array))
    edge, shown = (float(stats.t.ppf(p, len(array) - 1)) * error for p in (0.5 + CONFIDENCE / 2, POWER))
    mean = float(array.mean())
    return Interval(mean, mean - edge, mean + edge, f"{len(array)} {of}", edge + shown)


def held(found: Interval | None, unit: Unit, margin: float = HELD) -> str:
    """The protocol's word for a difference from all layers."""
    if found is None or found.low is None or found.high is None:
        return "-"
    worst, best = (found.low, found.high) if unit.higher_is_better else (-found.high, -found.low)
    within = worst > -margin
    if best < 0:
        return "worse, within the margin" if within else "worse"
    return "non-inferior" if within else "inconclusive"


def told_and_held(found: Interval | None, unit: Unit) -> str:
    """A difference from all layers, and the protocol's word for it."""
    return "-" if found is None else f"{difference_text(found, unit)}, {held(found, unit)}"


def beats(found: Interval | None, unit: Unit) -> str:
    """Whether one row beats another."""
    if found is None or found.low is None:
        return "-"
    if found.holds_zero:
        return "inconclusive"
    return "better" if (found.value > 0) == unit.higher_is_better else "worse"


def visible(found: Interval | None, unit: Unit) -> str:
    """The difference that four of five such intervals would show."""
    return "-" if found is None or found.visible is None else unit.tell(found.visible)


def machines(task: Task) -> str:
    """On what a task was trained."""
    found = []
    for place in task.places:
        kept = read_json(RESULTS / place / "compare.json", "a comparison")
        for made in kept["made"]:
            device = "a GPU" if made["device"].startswith("cuda") else "2 cores"
            found.append(f"{device} (torch {made['versions']['torch']}, PEFT {made['versions']['peft']})")
    return "; ".join(dict.fromkeys(found))
