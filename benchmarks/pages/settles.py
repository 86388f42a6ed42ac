"""Question 6: how many samples until a selection settles? Question 7: task or model?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from layersift.files import read_json
from pages.measured import RESULTS, mean_of
from pages.page import Page, lines, picture_of, table

DEFAULT = {"MiniLM": "mean", "MPNet": "mean", "SmolLM2.gguf": "response-mean", "Gemma3.gguf": "response-mean"}
NAMES = {"MiniLM": "MiniLM", "MPNet": "MPNet", "SmolLM2.gguf": "SmolLM2", "Gemma3.gguf": "Gemma 3"}
COMMAND = "python benchmarks/evidence_untrained.py SHARED DATA MODELS"
ALIKE, OF_SAMPLES = 1, 4  # layers that may differ, and in how many of five samples the choice is the same but for those
THE_MODEL, THE_TASK = 0.8, 0.5
SETTLING = """\
Debiased CKA at the default position; five samples of each size, no row in two of them. The figures are the mean
fraction of the chosen half that two samples have in common. *Settled* is the least size from which on four of five
choose alike but for one layer."""
DEFAULTS = """\
`select` reads 128 samples by default; `--until-stable` stops when the choice is sure."""
SETTLING_CHANGES = """\
A choice between layers of nearly the same importance never settles, whatever the number, and it does not matter
which is taken. The figures of other positions are in the same file."""
CORRELATION = """\
Spearman's correlation of debiased CKA's importances, each the mean over five samples of the largest size, at the
default position. Beside it stands how many layers of the chosen halves are the same. The protocol takes a mean above
0.8 for *the model*, below 0.5 for *the task*."""
WITHIN_TASK = """\
**Of one task**, between two samples of that size:"""
BETWEEN_MODELS = """\
**Between models**, at equal relative depth (the deeper model's importances interpolated at the other's layers),
mean and range over the tasks that both read:"""
TASK_CHANGES = """\
Tasks further from one another than these. The pairs of one model are no independent draws, so the interval is too
narrow. With few layers (MiniLM has six) a correlation is coarse."""

Found = dict[str, dict[str, dict[str, dict[str, list[list[float | None]]]]]]


def untrained() -> Found:
    """Importances by model, task, position and number of samples."""
    found: Found = read_json(RESULTS / "evidence" / "untrained.json", "importances")["found"]
    return {model: tasks for model, tasks in found.items() if tasks}


def top_half(values: Sequence[float | None]) -> frozenset[int]:
    """The half of the layers with the highest importances, of those that have one."""
    ranked = sorted(((value, -i) for i, value in enumerate(values) if value is not None), reverse=True)
    return frozenset(-i for _, i in ranked[: len(values) // 2])


def settled(samples: Sequence[Sequence[float | None]]) -> int:
    """In how many samples the choice is, but for one layer, that of the sample which most others agree with."""
    chosen = [top_half(one) for one in samples]
    half = len(samples[0]) // 2
    return max(sum(len(one & other) >= half - ALIKE for other in chosen) for one in chosen)


def settled_by_chance(layers: int, times: int = 10_000) -> float:
    """How often five halves at random are called settled."""
    scores = np.random.default_rng(0).random((times, 5, layers))
    return float(np.mean([settled(five.tolist()) >= OF_SAMPLES for five in scores]))


def _by_chance() -> str:
    few, many = (f"{100 * settled_by_chance(layers):.0f}" for layers in (6, 12))
    return f"Five halves of 6 layers at random would be called so in {few} of 100 cases, of 12 in {many}."


def samples_needed(by_size: dict[str, list[list[float | None]]]) -> int | None:
    """The least number of samples from which on enough of the five choose alike; None where not even the most do."""
    sizes = sorted(map(int, by_size))
    enough = [settled(by_size[str(size)]) >= OF_SAMPLES for size in sizes]
    least = next((i for i in range(len(sizes)) if all(enough[i:])), None)
    return None if least is None else sizes[least]


def most(by_size: dict[str, Any]) -> np.ndarray:
    """Mean importances (M,) over the samples of the largest size."""
    samples = np.ma.masked_invalid(np.array(by_size[max(by_size, key=int)], float))
    return np.asarray(samples.mean(axis=0).filled(np.nan))  # where no sample has one, there is none


def settling_page() -> Page:
    """How the five choices of each size agree."""
    found = untrained()
    sizes = _sizes(found)
    rows: list[list[str]] = []
    needed: list[int | None] = []
    shared: dict[str, dict[str, list[float]]] = {}
    for model, tasks in found.items():
        for task, positions in tasks.items():
            by_size = positions[DEFAULT[model]]
            least, layers = samples_needed(by_size), len(next(iter(by_size.values()))[0])
            of = {size: _shared(samples) for size, samples in by_size.items()}
            for size, value in of.items():
                shared.setdefault(NAMES[model], {}).setdefault(size, []).append(value)
            needed.append(least)
            cells = [f"{of[size]:.2f}" if size in of else "-" for size in sizes]
            settled_at = "more" if least is None else str(least)
            rows.append([NAMES[model], task, f"{layers // 2} of {layers}", *cells, settled_at])
    drawn = [
        {"samples": int(size), "shared": float(np.mean(values)), "model": model}
        for model, by_number in shared.items()
        for size, values in by_number.items()
    ]
    return Page(
        name="samples",
        question="How many samples until a selection settles?",
        answer=f"{_sentence(needed, int(sizes[0]))} {_by_chance()}",
        sections=[
            SETTLING,
            table(["model", "task", "chosen", *(f"{size} samples" for size in sizes), "settled"], rows),
            picture_of("samples", "Fraction of the chosen half that two samples have in common"),
            DEFAULTS,
        ],
        commands=[COMMAND],
        changes=SETTLING_CHANGES,
        charts={"samples": lines(drawn, "samples", "shared", "model", ("samples", "share in common, mean over tasks"))},
    )


def _sentence(needed: Sequence[int | None], least: int) -> str:
    known = [one for one in needed if one is not None]
    middle = int(np.median(known))
    open_ = len(needed) - len(known)
    rest = f"; {open_} of {len(needed)} had not settled with the most that were tried" if open_ else ""
    return (
        f"{middle}{', the least that was tried,' if middle == least else ''} in the middle and {max(known)} at "
        f"most{', where it settled' if open_ else ''}{rest}: from there on four "
        "of five samples choose the same half of the layers but for one."
    )


def _sizes(found: Found) -> list[str]:
    return sorted({s for tasks in found.values() for ps in tasks.values() for of in ps.values() for s in of}, key=int)


def _shared(samples: Sequence[Sequence[float | None]]) -> float:
    chosen = [top_half(one) for one in samples]
    return float(np.mean([len(a & b) / len(a) for a, b in itertools.combinations(chosen, 2)]))


def task_page() -> Page:
    """Rank correlations between tasks of one model, and between models at equal relative depth."""
    found, rows, same, within = untrained(), [], [], []
    for model, tasks in found.items():
        for task, positions in tasks.items():
            same.append([NAMES[model], task, f"{_of_two_samples(positions[DEFAULT[model]]):+.2f}"])
        importances = {task: most(positions[DEFAULT[model]]) for task, positions in tasks.items()}
        for one, other in itertools.combinations(importances, 2):
            rho = float(stats.spearmanr(importances[one], importances[other]).statistic)
            shared = len(top_half(importances[one].tolist()) & top_half(importances[other].tolist()))
            within.append(rho)
            rows.append([NAMES[model], f"{one}, {other}", f"{rho:+.2f}", f"{shared} of {len(importances[one]) // 2}"])
    mean = mean_of(within, "pairs")
    across = [_across(found, one, other) for one, other in itertools.combinations(found, 2)]
    word = "Mostly on the model" if mean.value > THE_MODEL else "On the task" if mean.value < THE_TASK else "On both"
    return Page(
        name="task-or-model",
        question="Does a selection depend on the task, or only on the model?",
        answer=f"{word}: the rank correlation of the layers' importances between two tasks of one model is "
        f"{mean.value:.2f} on average ({mean.low:.2f} to {mean.high:.2f} over {mean.over}).",
        sections=[
            CORRELATION,
            table(["model", "tasks", "correlation", "of the chosen half in common"], rows),
            WITHIN_TASK,
            table(["model", "task", "correlation of two samples"], same),
            BETWEEN_MODELS,
            table(["models", "correlation", "tasks"], [row for row in across if row]),
        ],
        commands=[COMMAND],
        changes=TASK_CHANGES,
    )


def _of_two_samples(by_size: dict[str, list[list[float | None]]]) -> float:
    """The mean rank correlation of two samples of one task, of the largest size."""
    samples = np.array(by_size[max(by_size, key=int)], float)
    return float(
        np.mean([stats.spearmanr(a, b, nan_policy="omit").statistic for a, b in itertools.combinations(samples, 2)])
    )


def _across(found: Found, one: str, other: str) -> list[str]:
    tasks = [task for task in found[one] if task in found[other]]
    if not tasks:
        return []
    rhos = []
    for task in tasks:
        a, b = (most(found[model][task][DEFAULT[model]]) for model in (one, other))
        few, many = sorted((a, b), key=len)
        depth = np.linspace(0, 1, len(few))
        rhos.append(float(stats.spearmanr(few, np.interp(depth, np.linspace(0, 1, len(many)), many)).statistic))
    return [
        f"{NAMES[one]}, {NAMES[other]}",
        f"{np.mean(rhos):+.2f} ({min(rhos):+.2f} to {max(rhos):+.2f})",
        str(len(tasks)),
    ]
