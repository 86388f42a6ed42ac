"""Decoders, in nats a token: a quarter, half and three quarters of the layers, by CKA and otherwise."""

from __future__ import annotations

from functools import cache

from layersift.experiment.choices import ALL, LAST, RANDOM, Choice
from layersift.experiment.judge import Trained
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import Interval
from layersift.statistics.verdicts import LOSS
from pages.measured import CKA, RESULTS, Task, beats, told_and_held
from pages.measured import TASKS as EVERY_TASK
from pages.page import table
from trained import compared_rows

TASKS = (
    Task("GSM8K", "SmolLM2", ("strategies/smollm2-gsm8k-tuned",)),
    Task("code", "SmolLM2", ("evidence/smollm2-code",), "evidence.py"),
    Task("GSM8K", "Gemma 3", ("evidence/gemma3-gsm8k",), "evidence.py"),
)
COLUMNS = {(CKA, ALL): "CKA's from all", (LAST, CKA): "the last from CKA's", (RANDOM, CKA): "random from CKA's"}
WORDS = """\
**Decoders**, by the number of layers, in nats a token (below zero is better). Where a row has not been trained there
is a dash; of one seed an interval is over the problems alone."""


def done() -> list[Task]:
    """Those that have been trained."""
    return [task for task in TASKS if task.done]


def others() -> list[Task]:
    """Those that are not among the tasks of question 1."""
    known = {task.places for task in EVERY_TASK}
    return [task for task in done() if task.places not in known]


def section() -> str:
    """The table."""
    rows = [row for task in done() for row in _rows(task)]
    return table(["model and task", "layers", *COLUMNS.values(), "seeds"], rows)


def differences(one: str, other: str) -> dict[str, Interval | None]:
    """Between two rows, of every number of layers of those others."""
    return {
        f"{task.model} on {task.name} ({size} layers)": _apart(task, size, one, other)
        for task in others()
        for size in _sizes(task)
    }


@cache
def _read(task: Task) -> tuple[dict[tuple[int, str], Choice], Trained]:
    """The rows of equal epochs by their number of layers and name, and the trainings behind them."""
    rows, trained = compared_rows(RESULTS / task.places[0])
    return {(row.size, row.name): row for row in rows if row.budget is None}, trained


def _sizes(task: Task) -> list[int]:
    return sorted({size for size, name in _read(task)[0] if name != ALL})


def _apart(task: Task, size: int, one: str, other: str) -> Interval | None:
    choices, trained = _read(task)
    return task.apart(choices.get((size, one)), choices.get((size, other)), trained)


def _rows(task: Task) -> list[list[str]]:
    choices, trained = _read(task)
    layers = len(next(iter(choices.values())).masks[0])
    found = []
    for size in _sizes(task):
        cells = []
        for one, other in COLUMNS:
            apart = _apart(task, size, one, other)
            cells.append(told_and_held(apart, LOSS) if other == ALL else _told_and_beaten(apart))
        found.append([f"{task.model} on {task.name}", f"{size} of {layers}", *cells, str(len(trained.seeds))])
    return found


def _told_and_beaten(apart: Interval | None) -> str:
    return "-" if apart is None else f"{told(apart, LOSS)}, {beats(apart, LOSS)}"
