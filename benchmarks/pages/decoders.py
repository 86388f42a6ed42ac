"""Decoders, in nats a token: a quarter, half and three quarters of the layers, by CKA and otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from layersift.experiment.choices import ALL, LAST, RANDOM, Choice
from layersift.experiment.judge import Trained, runs_of
from layersift.files import read_json
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import LOSS, Interval
from pages.measured import CKA, RESULTS, Task, beats, told_and_held
from pages.measured import TASKS as EVERY_TASK
from pages.page import table
from trained import compared_rows, judged_on_test, results_in

TASKS = (
    Task("GSM8K", "SmolLM2", ("strategies/smollm2-gsm8k-tuned",)),
    Task("code", "SmolLM2", ("evidence/smollm2-code",), "evidence.py"),
    Task("GSM8K (short)", "SmolLM2", ("evidence/smollm2-gsm8k",), "evidence.py"),
    Task("code (short)", "SmolLM2", ("evidence/smollm2-code-short",), "evidence.py"),
    Task("GSM8K (short)", "Gemma 3", ("evidence/gemma3-gsm8k",), "evidence.py"),
    Task("code (short)", "Gemma 3", ("evidence/gemma3-code",), "evidence.py"),
)
ANSWERED = {  # by the result of a benchmark: its task, its metric, and what is said of it
    "smollm2-gsm8k-harness": ("gsm8k", "exact_match", "of GSM8K's first {of} problems SmolLM2 as it is solves {right}"),
    "gemma3-gsm8k-harness": ("gsm8k", "exact_match", "Gemma 3, trained with all layers as above, {right} of {of}"),
    "smollm2-humaneval": ("humaneval", "pass@1", "of HumanEval's {of} functions SmolLM2 as it is writes {right}"),
}
COLUMNS = {(CKA, ALL): "CKA's from all", (LAST, CKA): "the last from CKA's", (RANDOM, CKA): "random from CKA's"}
DRAWN = {LAST: "the last layers", CKA: "CKA's", RANDOM: "random ones"}
WORDS = """\
**Decoders**, by the number of layers, in nats a token (below zero is better). *Short* is one epoch of 160 rows,
judged on 96, in the place of two of 600. A dash was not trained. With one seed an
interval is over the test rows alone. Seeds are those of each difference, in order."""
EXACT = "**Exact match** separates no layers, because these models hardly solve such tasks: "


def done() -> list[Task]:
    """Those that have been trained."""
    return [task for task in TASKS if task.done]


def others() -> list[Task]:
    """Those that are not among the tasks of question 1."""
    known = {task.places for task in EVERY_TASK}
    return [task for task in done() if task.places not in known]


def section() -> str:
    """The table."""
    rows = [_row(task, size) for task, size in _tables(done())]
    return table(["model and task", "layers", *COLUMNS.values(), "seeds"], rows)


def halves_lost() -> str:
    """How often half of a decoder's layers were worse than all of them."""
    halves = [(task, size) for task, size in _tables(done()) if 2 * size == _layers(task)]
    words = {name: [beats(apart, LOSS) for apart in _differences(name, ALL, halves)] for name in (LAST, CKA)}
    last, cka = (f"{of.count('worse')} of {len(of)}" for of in words.values())
    return f"of decoders' halves the last was worse in {last} tables, CKA's in {cka}"


def beaten_and_beating() -> str:
    """How often CKA's layers were better or worse than others, at every number of layers."""
    said = []
    for rival, words in ((LAST, "the last"), (RANDOM, "random ones")):
        of = [beats(apart, LOSS) for apart in differences(CKA, rival, done())]
        won, lost = of.count("better"), of.count("worse")
        said.append(f"better than {words} in {won} of {len(of)} and worse in {lost}")
    return f"On decoders CKA's layers were {', '.join(said)}"


def exact_match() -> str:
    """How many of a benchmark's problems the models solve, so that losses are compared and not these."""
    found = []
    for file, (name, metric, words) in ANSWERED.items():
        task = read_json(RESULTS / f"{file}.json", "a benchmark's result")["tasks"][name]
        right = round(task["metrics"][metric] * task["samples"])
        found.append(words.format(of=task["samples"], right=right))
    return f"{EXACT}{'; '.join(found)}."


def drawn() -> list[tuple[str, str, Interval | None]]:
    """What each choice loses from all layers, as a chart takes it."""
    return [
        (f"{task.model} on {task.name}, {size} of {_layers(task)}", words, _apart(task, size, name, ALL))
        for task, size in _tables(done())
        for name, words in DRAWN.items()
    ]


def differences(one: str, other: str, tasks: Sequence[Task]) -> list[Interval]:
    """Between two rows, of every number of layers that both were trained of."""
    return _differences(one, other, _tables(tasks))


def _differences(one: str, other: str, tables: Sequence[tuple[Task, int]]) -> list[Interval]:
    found = [_apart(task, size, one, other) for task, size in tables]
    return [apart for apart in found if apart is not None]


@cache
def _read(task: Task) -> tuple[dict[tuple[int, str], Choice], Trained]:
    """The rows of equal epochs by their number of layers and name, and every training that was judged on test rows."""
    place = RESULTS / task.places[0]
    rows, _ = compared_rows(place)
    return {(row.size, row.name): row for row in rows if row.budget is None}, judged_on_test(results_in(place))


def _tables(tasks: Sequence[Task]) -> list[tuple[Task, int]]:
    """Every number of layers of every task."""
    return [(task, size) for task in tasks for size in sorted({size for size, name in _read(task)[0] if name != ALL})]


def _layers(task: Task) -> int:
    return len(next(iter(_read(task)[0].values())).masks[0])


def _apart(task: Task, size: int, one: str, other: str) -> Interval | None:
    choices, trained = _read(task)
    if (size, one) not in choices or (size, other) not in choices:
        return None
    common = replace(trained, seeds=_seeds(task, size, one, other))
    return task.apart(choices[size, one], choices[size, other], common)


def _seeds(task: Task, size: int, *names: str) -> tuple[int, ...]:
    """Those that all of some rows were trained with."""
    choices, trained = _read(task)
    each = [set(runs_of(choices[size, name], trained).scores) for name in names]
    return tuple(sorted(set.intersection(*each)))


def _row(task: Task, size: int) -> list[str]:
    cells, seeds = [], []
    for one, other in COLUMNS:
        apart = _apart(task, size, one, other)
        cells.append(told_and_held(apart, LOSS) if other == ALL else _told_and_beaten(apart))
        if apart is not None:
            seeds.append(str(len(_seeds(task, size, one, other))))
    told_once = seeds[:1] if len(set(seeds)) == 1 else seeds
    return [f"{task.model} on {task.name}", f"{size} of {_layers(task)}", *cells, ", ".join(told_once)]


def _told_and_beaten(apart: Interval | None) -> str:
    return "-" if apart is None else f"{told(apart, LOSS)}, {beats(apart, LOSS)}"
