"""Decoders, in nats a token: a quarter, half and three quarters of the layers, by CKA and otherwise."""

from __future__ import annotations

from layersift.config.fields import read_as
from layersift.experiment.choices import ALL, LAST, RANDOM, Choice
from layersift.experiment.judge import runs_of
from layersift.files import read_json
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import Interval, difference
from layersift.statistics.verdicts import LOSS
from pages.measured import CKA, RESULTS, Task, beats, held
from pages.page import table
from trained import compared

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


def section() -> str:
    """The table."""
    rows = [row for task in done() for row in _rows(task)]
    return table(["model and task", "layers", *COLUMNS.values(), "seeds"], rows)


def _rows(task: Task) -> list[list[str]]:
    (place,) = task.places
    kept = read_json(RESULTS / place / "compare.json", "a comparison")
    _, trained = compared(RESULTS / place)
    read = [read_as(Choice, row["choice"], "a row of a comparison") for row in kept["rows"]]
    choices = {(choice.size, choice.name): choice for choice in read if choice.budget is None}
    found = []
    for size in sorted({size for size, name in choices if name != ALL}):
        cells = []
        for one, other in COLUMNS:
            pair = [choices.get((size, name)) for name in (one, other)]
            runs = [runs_of(choice, trained) for choice in pair if choice is not None]
            apart = difference(*runs) if len(runs) == len(pair) else None
            cells.append(_cell(apart, other))
        name = f"{task.model} on {task.name}"
        found.append([name, f"{size} of {kept['num_layers']}", *cells, str(len(kept["seeds"]))])
    return found


def _cell(apart: Interval | None, other: str) -> str:
    if apart is None:
        return "-"
    return f"{told(apart, LOSS)}, {held(apart, LOSS) if other == ALL else beats(apart, LOSS)}"
