"""Question 3: is CKA's choice better than random, the last half, Fisher's, block influence's?"""

from __future__ import annotations

from collections.abc import Sequence

from layersift.experiment.choices import LAST, RANDOM
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import POINTS, Interval
from pages.decoders import beaten_and_beating
from pages.measured import CKA, Task, beats, classified, over_tasks
from pages.page import Page, intervals, picture_of, table
from pages.subsets import COMMAND as SUBSETS
from pages.subsets import chosen_rows, each, each_placed, placed_rows, shares_beaten

RIVALS = {RANDOM: "random", LAST: "the last half", "fisher": "Fisher's", "cosine": "block influence's"}
WORDS = """\
Half of the layers chosen by CKA from half of them chosen otherwise, in points of accuracy (nats a token on GSM8K, where
less is better). Where both choose the same layers the difference is nothing. Other decoders and numbers of layers
stand [in question 1](half.md)."""
PLACED = """\
**Among all subsets** of MiniLM's six layers (three seeds, 400 rows), and forty random halves of MPNet's twelve (one
seed, 256 rows). *Percentile* is the fraction of the others that a rule's choice beats. *Lost* is
what it loses to the best one that was trained; *from chance* is its distance from the mean of the others.
Means over {tables} tables; the intervals are of their spread, and too narrow where those of one task are alike."""
SHARES = """\
Table by table, the fraction of the others that scores less:"""
CHOSEN = """\
CKA's choice from the others' there, with three seeds:"""
CRITERIA = {
    "cka": "CKA's choices",
    "cosine": "block influence's",
    "fisher": "Fisher's",
    "last": "the last layers",
}
OTHERS = {name: words for name, words in CRITERIA.items() if name != CKA}
CHANGES = """\
Fisher's and block influence's choices have been trained on the tasks of `benchmarks/evidence/` alone. Larger models:
among six layers the last ones are hard to do without.
[Machines](half.md#what-would-change-the-answer)."""


def _rival(task: Task, rival: str) -> str:
    choice = task.find(rival)
    draws = len(choice.masks) if choice is not None and rival == RANDOM else 0
    return RIVALS[rival] + (f", {draws} draw{'s' * (draws > 1)}" if draws else "")


def page(tasks: Sequence[Task]) -> Page:
    """CKA's half from its rivals' on every task, and over those in points."""
    some = classified(tasks)
    rows: list[list[str]] = []
    drawn: list[tuple[str, str, Interval | None]] = []
    over: dict[str, Interval] = {}
    for rival, words in RIVALS.items():
        of = {task.name: task for task in tasks if task.find(rival) is not None}
        apart = {name: task.apart(task.find(CKA), task.find(rival)) for name, task in of.items()}
        for name, task in of.items():
            cka, found = task.find(CKA), apart[name]
            mask = "-" if cka is None else cka.masks[0]
            rows.append([_rival(task, rival), name, mask, told(found, task.unit), beats(found, task.unit)])
        mean = over_tasks([apart[task.name] for task in some if task.name in of])
        if mean is not None:
            over[words] = mean
            rows.append([f"**{words}**", f"**over {mean.over}**", "-", told(mean, POINTS), beats(mean, POINTS)])
            drawn.append((words, "over tasks", mean))
        drawn += [(words, task.name, apart[task.name]) for task in some if task.name in of]
    return Page(
        name="rules",
        question="Is CKA's choice better than another?",
        answer=_sentence(over),
        sections=[
            WORDS,
            table(["rival", "task", "CKA's choice", "CKA's from the rival's", ""], rows),
            picture_of("rules", "CKA's choice from its rivals'"),
            PLACED.format(tables=len(list(each()))),
            table(["rule", "percentile", "lost to the best, points", "from chance, points"], placed_rows(CRITERIA)),
            SHARES,
            table(["model and task", "layers", *CRITERIA.values()], each_placed(CRITERIA)),
            CHOSEN,
            table(
                ["model and task", "CKA's choice", *(f"from {name}" for name in OTHERS.values())], chosen_rows(OTHERS)
            ),
        ],
        commands=[*(task.command for task in tasks), SUBSETS],
        changes=CHANGES,
        charts={"rules": intervals(drawn, POINTS, "points, CKA's half from the rival's")},
    )


def _sentence(over: dict[str, Interval]) -> str:
    said = ". ".join(f"From {name} {told(mean, POINTS)} points ({mean.over})" for name, mean in over.items())
    said += f". {shares_beaten(CRITERIA)}. {beaten_and_beating()}"
    for word, begins in (("better", "It is better than"), ("worse", "No: it is worse than")):
        if names := [name for name, mean in over.items() if beats(mean, POINTS) == word]:
            return f"{begins} {' and '.join(names)} over tasks. {said}."
    return f"Inconclusive. {said}."
