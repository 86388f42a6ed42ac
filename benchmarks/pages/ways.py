"""Question 8: which way of training costs less and loses nothing over tasks; which lies on the front of each?"""

from __future__ import annotations

from collections.abc import Sequence

from layersift.experiment.choices import ALL
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import POINTS, Interval
from pages.measured import HELD_OVER_TASKS, Task, beats, classified, held, over_tasks, visible
from pages.page import Page, intervals, picture_of, table

WORDS = """\
Each variant from all layers at equal epochs or at a share of their FLOPs, in classification: the mean over tasks, its
interval from their spread. *Non-inferior* is above -1 point. *Shown* is the difference that four of five such
intervals would show. With two or three tasks an interval says little. *random* is the last half
on TREC, SST-2 and digits."""
FRONT = """\
**By task.** A variant is on the front where no other takes as few FLOPs or fewer and scores more by an interval that
excludes zero. Few seeds leave much on it: that nothing beats a variant is no evidence for it."""
FEWEST = 4  # tasks of classification, for a variant to be in the answer
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


def _over(tasks: Sequence[Task]) -> dict[str, tuple[list[Task], Interval | None]]:
    """Of each variant but all layers, the tasks that it was trained on, and its mean difference from all layers."""
    names = dict.fromkeys(name for task in tasks for name in task.ways if name != ALL)
    of = {name: [task for task in tasks if name in task.ways] for name in names}
    return {
        name: (there, over_tasks([task.apart(task.ways[name], task.find(ALL)) for task in there]))
        for name, there in of.items()
    }


def _over_row(name: str, tasks: Sequence[Task], mean: Interval | None) -> list[str]:
    flops = [task.ways[name].flops or 0 for task in tasks]
    apart = {task.name: task.apart(task.ways[name], task.find(ALL)) for task in tasks}
    worst = min(apart, key=lambda task: one.value if (one := apart[task]) is not None else 0.0)
    cells = [name, str(len(tasks)), f"{min(flops):.2f} to {max(flops):.2f}", told(mean, POINTS)]
    return [*cells, held(mean, POINTS, HELD_OVER_TASKS), visible(mean, POINTS), f"{worst} {told(apart[worst], POINTS)}"]


def _answer(over: dict[str, tuple[list[Task], Interval | None]], tasks: int) -> str:
    words: dict[str, list[str]] = {}
    for name, (there, mean) in over.items():
        if len(there) >= FEWEST and mean is not None:
            word = held(mean, POINTS, HELD_OVER_TASKS)
            words.setdefault(word, []).append(f"{name} {told(mean, POINTS)}")
    order = ("non-inferior", "worse, within the margin", "worse", "inconclusive")
    said = "; ".join(f"{word}: {', '.join(words[word])}" for word in order if word in words)
    return f"Points from all layers over {FEWEST} to {tasks} tasks of classification. {said[0].upper()}{said[1:]}."


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
    over = _over(classified(tasks))
    means = [_over_row(name, *of_one) for name, of_one in sorted(over.items(), key=lambda item: -len(item[1][0]))]
    drawn = [
        (task.name, name, task.from_all(name))
        for task in classified(tasks)
        for name in DRAWN
        if task.find(name) is not None
    ]
    sections = [
        WORDS,
        table(["training variant", "tasks", "FLOPs", "from all", "", "shown", "worst task"], means),
        picture_of("ways", "Training variants of all layers, from all layers"),
        FRONT,
        table(["training variant", "on the front", "not on that of"], rows),
    ]
    for task in tasks:
        sections.append(f"**{task.name}**, {task.model}, over {task.over}:")
        sections.append(table(["training variant", "FLOPs", "from all", "worse than"], _rows(task, beaten[task.name])))
    return Page(
        name="ways",
        question="Which training variant costs less and loses nothing?",
        answer=_answer(over, len(classified(tasks))),
        sections=sections,
        commands=[task.command for task in tasks],
        changes=CHANGES,
        charts={"ways": intervals(drawn, POINTS, "points from all layers, equal epochs")},
    )
