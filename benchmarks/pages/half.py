"""Question 1: does half of the layers match all?"""

from __future__ import annotations

from collections.abc import Sequence

from layersift.experiment.choices import ALL, LAST
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import LOSS, POINTS, Interval
from pages import decoders
from pages.measured import HALVES, HELD_OVER_TASKS, Task, classified, held, machines, over_tasks
from pages.page import Page, intervals, picture_of, table

WORSE, WITHIN = "worse", "worse, within the margin"
WORDS = """\
Points of accuracy; nats a token on GSM8K, where less is better. A half is *non-inferior* where the interval lies above
-2 points (below +0.02 nats; over tasks above -1 point). *Operations* are FLOPs, a fraction of all layers'."""
LONGER = "**At equal FLOPs** the last half is trained longer, or all layers shorter:"
MEMORY = """\
**At equal memory** all layers are trained in smaller batches that are accumulated. That is the same training to
rounding, for as many FLOPs (1.00 on each of six tasks, at version 0.1)."""
CHANGES = """\
More tasks: over so few the interval is wide. A training of another length: halves lose where a decoder has not
converged, as on GSM8K, and [gain with 128 rows](conditions.md)."""


def _sentence(over: dict[str, Interval | None], tasks: Sequence[Task]) -> str:
    some = classified(tasks)
    words = {name: held(apart, POINTS, HELD_OVER_TASKS) for name, apart in over.items()}
    of = [f"{HALVES[name]} {told(apart, POINTS)} points from all layers, {words[name]}" for name, apart in over.items()]
    said = f"in classification, over {len(some)} tasks: {'; '.join(of)}"
    beside = f"; {decoders.halves_lost()}"
    if any(word in ("non-inferior", WITHIN) for word in words.values()):
        return f"Within a point {said}{beside}."
    if all(word == WORSE for word in words.values()):
        return f"No: {said}{beside}."
    return f"{'Not shown' if WORSE in words.values() else 'Inconclusive'} {said}{beside}."


def _rows(task: Task) -> list[list[str]]:
    found = []
    for name, words in HALVES.items():
        choice, apart = task.find(name), task.from_all(name)
        each = [told(task.apart(choice, task.find(ALL), one), task.unit) for one in task.parts]
        cost = "-" if choice is None or choice.flops is None else f"{choice.flops:.2f}"
        beside = "; ".join(each) if len(each) > 1 else "-"
        found.append([task.name, words, told(apart, task.unit), held(apart, task.unit), beside, cost, task.over])
    return found


def _equal_rows(task: Task) -> list[list[str]]:
    """The last half from all layers, for each fraction of FLOPs that both were trained for."""
    found = []
    for budget in task.budgets:
        apart = task.apart(task.find(LAST, budget), task.find(ALL, budget))
        if apart is not None:
            found.append([task.name, f"{budget:.2f}", told(apart, task.unit), held(apart, task.unit)])
    return found


def page(tasks: Sequence[Task]) -> Page:
    """The halves from all layers on every task, and over those in points."""
    some = classified(tasks)
    over = {name: over_tasks([task.from_all(name) for task in some]) for name in HALVES}
    rows = [row for task in tasks for row in _rows(task)]
    for name, words in HALVES.items():
        word = held(over[name], POINTS, HELD_OVER_TASKS)
        rows.append([f"**over {len(some)} tasks**", words, told(over[name], POINTS), word, "-", "-", "-"])
    drawn = [(task.name, words, task.from_all(name)) for task in some for name, words in HALVES.items()]
    drawn += [(f"over {len(some)} tasks", words, over[name]) for name, words in HALVES.items()]
    return Page(
        name="half",
        question="Does half of the layers match all?",
        answer=_sentence(over, tasks),
        sections=[
            WORDS,
            table(["task", "half", "from all, equal epochs", "", "each machine", "FLOPs", "over"], rows),
            picture_of("half", "Differences of the halves from all layers"),
            LONGER,
            table(
                ["task", "of all layers' FLOPs", "the last half from all", ""],
                [row for task in tasks for row in _equal_rows(task)],
            ),
            MEMORY,
            decoders.WORDS,
            picture_of("decoders", "Differences of a decoder's layers from all of them"),
            decoders.section(),
            decoders.exact_match(),
        ],
        commands=list(dict.fromkeys(task.command for task in [*tasks, *decoders.done()])),
        changes=f"{CHANGES}\n\n{table(['task', 'trained on'], [[task.name, machines(task)] for task in tasks])}",
        charts={
            "half": intervals(drawn, POINTS, "points from all layers, equal epochs"),
            "decoders": intervals(decoders.drawn(), LOSS, "nats a token from all layers; more is worse"),
        },
    )
