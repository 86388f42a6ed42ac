"""Question 3: is CKA's choice better than random, the last half, Fisher's, block influence's?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layersift.experiment.choices import LAST
from layersift.files import read_json
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import POINTS, Interval
from pages.decoders import beaten_and_beating
from pages.measured import CKA, RESULTS, Task, beats, classified, over_tasks, visible
from pages.page import Page, intervals, picture_of, table
from pages.subsets import COMMAND as SUBSETS
from pages.subsets import chosen_rows, each, each_placed, placed_rows, shares_beaten

RIVALS = {LAST: "the last half", "fisher": "Fisher's", "cosine": "block influence's"}
WORDS = """\
Half of the layers chosen by CKA from half of them chosen otherwise, in points of accuracy (nats a token on GSM8K, where
less is better). Where both choose the same layers there is nothing to compare: such tasks are in no mean. *Shown* is
the difference that four of five such intervals would show. Other decoders and numbers of layers stand
[in question 1](half.md).

Older random choices are left out: on TREC, SST-2 and digits they were the last half."""
HALVES_WORDS = """\
Five halves drawn for each task, without the last and without CKA's, all at the default rate for a half, three seeds.
The last two columns are points, with the spread between the draws in their intervals."""
PLACED = """\
**Among all subsets** of MiniLM's six layers (three seeds, 400 rows), and forty random halves of MPNet's twelve (one
seed, 256 rows). *Percentile* is the fraction of the others that a rule's choice beats. *Lost* is
what it loses to the best one that was trained; *from chance* is its distance from the mean of the others.
Means over {tables} tables; the intervals are of their spread, and too narrow where those of one task are alike."""
SHARES = """\
Table by table, the fraction of the others that scores less:"""
RANDOM_WORDS = "five random halves"
HALVES_HEADER = ["model and task", "all layers", "last half", "CKA's half", "random halves", "CKA's from random"]
HALVES_HEADER += ["last from random"]
RANDOM_HALVES = "python benchmarks/random_halves.py SHARED DATA MODELS"
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


def random_halves() -> dict[str, Any]:
    """What `python benchmarks/random_halves.py` wrote, by pair of a model and a task."""
    return dict(read_json(RESULTS / "random_halves.json", "random halves")["tasks"])


def _from_random(which: str) -> list[Interval]:
    return [Interval(**of["from_random"][which]) for of in random_halves().values()]


def _halves_rows() -> list[list[str]]:
    rows = []
    for name, of in random_halves().items():
        scores = {which: POINTS.tell(value) for which, value in of["scores"].items()}
        five = ", ".join(POINTS.tell(score) for score in sorted(of["draws"]))
        apart = [told(Interval(**of["from_random"][which]), POINTS) for which in (CKA, LAST)]
        rows.append([name, scores["all"], scores[LAST], f"{scores[CKA]} ({of['masks'][CKA]})", five, *apart])
    means = [told(over_tasks(_from_random(which)), POINTS) for which in (CKA, LAST)]
    return [*rows, ["**over tasks**", "", "", "", "", *means]]


def differ(task: Task, rival: str) -> bool:
    """Whether CKA and a rival chose other layers, so that there is something to compare."""
    cka, other = task.find(CKA), task.find(rival)
    return cka is not None and other is not None and set(cka.masks) != set(other.masks)


def page(tasks: Sequence[Task]) -> Page:
    """CKA's half from its rivals' on every task, and over those in points."""
    some = classified(tasks)
    rows: list[list[str]] = []
    drawn: list[tuple[str, str, Interval | None]] = []
    over: dict[str, Interval] = {}
    for rival, words in RIVALS.items():
        of = {task.name: task for task in tasks if task.find(rival) is not None}
        apart = {name: task.apart(task.find(CKA), task.find(rival)) for name, task in of.items() if differ(task, rival)}
        for name, task in of.items():
            cka, found = task.find(CKA), apart.get(name)
            mask = "-" if cka is None else cka.masks[0]
            told_apart = told(found, task.unit) if name in apart else "the same layers"
            rows.append([words, name, mask, told_apart, beats(found, task.unit), visible(found, task.unit)])
        mean = over_tasks([apart[task.name] for task in some if task.name in apart])
        if mean is not None:
            over[words] = mean
            said = [told(mean, POINTS), beats(mean, POINTS), visible(mean, POINTS)]
            rows.append([f"**{words}**", f"**over {mean.over}**", "-", *said])
            drawn.append((words, "over tasks", mean))
        drawn += [(words, task.name, apart[task.name]) for task in some if task.name in apart]
    return Page(
        name="rules",
        question="Is CKA's choice better than another?",
        answer=_sentence(over),
        sections=[
            WORDS,
            table(["rival", "task", "CKA's choice", "CKA's from the rival's", "", "shown"], rows),
            picture_of("rules", "CKA's choice from its rivals'"),
            "## Random halves",
            HALVES_WORDS,
            table(HALVES_HEADER, _halves_rows()),
            "## Among all subsets",
            PLACED.format(tables=len(list(each()))),
            table(["rule", "percentile", "lost to the best, points", "from chance, points"], placed_rows(CRITERIA)),
            SHARES,
            table(["model and task", "layers", *CRITERIA.values()], each_placed(CRITERIA)),
            CHOSEN,
            table(
                ["model and task", "CKA's choice", *(f"from {name}" for name in OTHERS.values())], chosen_rows(OTHERS)
            ),
        ],
        commands=[*(task.command for task in tasks), SUBSETS, RANDOM_HALVES],
        changes=CHANGES,
        charts={"rules": intervals(drawn, POINTS, "points, CKA's half from the rival's")},
    )


def _sentence(over: dict[str, Interval]) -> str:
    said = ". ".join(f"From {name} {told(mean, POINTS)} points ({mean.over})" for name, mean in over.items())
    halves = {RANDOM_WORDS: over_tasks(_from_random(CKA)), "the last": over_tasks(_from_random(LAST))}
    count = len(random_halves())
    said += f". From {RANDOM_WORDS} {told(halves[RANDOM_WORDS], POINTS)} ({count} tasks); there the last half is "
    said += f"{told(halves['the last'], POINTS)} from them. {shares_beaten(CRITERIA)}. {beaten_and_beating()}"
    for word, begins in (("better", "It is better than"), ("worse", "No: it is worse than")):
        if names := [name for name, mean in over.items() if beats(mean, POINTS) == word]:
            return f"{begins} {' and '.join(names)} over tasks. {said}."
    return f"Inconclusive. {said}."
