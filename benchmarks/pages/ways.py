"""Question 8: which way of training lies on the front of cost and score where?"""

from __future__ import annotations

from collections.abc import Sequence

from layersift.experiment.choices import ALL
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import POINTS
from pages.measured import Task, beats, classified
from pages.page import Page, intervals, picture_of, table

WORDS = """\
A training variant is on the front of a task where no other takes as few FLOPs or fewer and scores more by an interval
that excludes zero. With intervals this wide much is on the front that would not be with more seeds."""
DRAWN = ("freezing", "converging", "all, matched rank", "all, attention alone")
CHANGES = """\
More seeds take variants off the front. On GSM8K the rows at equal FLOPs have not been trained
([why](older-tables.md#training-variants-of-smollm2-on-gsm8k-three-seeds)).
[Machines](half.md#what-would-change-the-answer)."""


def beaten_by(task: Task, name: str) -> list[str]:
    """Ways that are no dearer and score more by an interval that excludes zero."""
    one = task.ways[name]
    return [
        other
        for other, choice in task.ways.items()
        if other != name
        and (choice.flops or 0) <= (one.flops or 0)
        and beats(task.apart(choice, one), task.unit) == "better"
    ]


def _rows(task: Task, beaten: dict[str, list[str]]) -> list[list[str]]:
    found = []
    for name, choice in sorted(task.ways.items(), key=lambda item: item[1].flops or 0):
        cost = "-" if choice.flops is None else f"{choice.flops:.2f}"
        itself = choice.name == ALL and choice.budget is None
        apart = "-" if itself else told(task.apart(choice, task.find(ALL)), task.unit)
        found.append([name, cost, apart, "; ".join(beaten[name]) or "on the front"])
    return found


def page(tasks: Sequence[Task]) -> Page:
    """Every way that was trained, by task, and what beats it."""
    beaten = {task.name: {name: beaten_by(task, name) for name in task.ways} for task in tasks}
    of: dict[str, list[Task]] = {}
    for task in tasks:
        for name in task.ways:
            of.setdefault(name, []).append(task)
    front = {name: [task for task in trained if not beaten[task.name][name]] for name, trained in of.items()}
    ordered = sorted(of, key=lambda name: (-len(front[name]) / len(of[name]), -len(of[name]), name))
    rows = [
        [
            name,
            f"{len(front[name])} of {len(of[name])}",
            ", ".join(task.name for task in of[name] if task not in front[name]) or "-",
        ]
        for name in ordered
    ]
    always = [name for name in of if len(front[name]) == len(of[name]) and 2 * len(of[name]) > len(tasks)]
    never = [name for name in of if not front[name]]
    drawn = [
        (task.name, name, task.from_all(name))
        for task in classified(tasks)
        for name in DRAWN
        if task.find(name) is not None
    ]
    sections = [
        WORDS,
        table(["training variant", "on the front", "not on that of"], rows),
        picture_of("ways", "Training variants of all layers, from all layers"),
    ]
    for task in tasks:
        sections.append(f"**{task.name}**, {task.model}, over {task.over}:")
        sections.append(table(["training variant", "FLOPs", "from all", "worse than"], _rows(task, beaten[task.name])))
    return Page(
        name="ways",
        question="Which training variant lies on the front of cost and score?",
        answer=f"Of what was trained on more than half of the {len(tasks)} tasks, on every front: "
        f"{'; '.join(always) or 'none'}. On none: {'; '.join(never) or 'none'}. Most differences at "
        "equal cost are inconclusive.",
        sections=sections,
        commands=[task.command for task in tasks],
        changes=CHANGES,
        charts={"ways": intervals(drawn, POINTS, "points from all layers, equal epochs")},
    )
