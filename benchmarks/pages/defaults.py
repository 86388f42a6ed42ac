"""What layersift does unless it is told otherwise, and which answers that rests on."""

from __future__ import annotations

from collections.abc import Sequence

from layersift.config.select import DEFAULT_RATIO, SelectSettings
from layersift.config.train import TrainSettings
from layersift.config.variants import CompareSettings
from layersift.experiment.choices import LAST, RANDOM
from layersift.statistics.intervals import POINTS, difference
from pages import decoders, rewarded
from pages.measured import CKA, Task, beats
from pages.page import Page, table
from pages.rules import CRITERIA, RIVALS
from pages.settles import DEFAULT as POSITIONS
from pages.subsets import each, shares_beaten

FOOT = """\
[The protocol's rule](protocol.md#defaults) makes them. `layersift advise` needs none of them
([its order](../advise.md#what-the-order-rests-on))."""


def text(tasks: Sequence[Task], found: Sequence[Page]) -> str:
    """The page, in Markdown."""
    of = {page.name: page for page in found}
    settings, train, grid = SelectSettings(), TrainSettings(), CompareSettings()
    positions = " and ".join(f"`{position}`" for position in dict.fromkeys(POSITIONS.values()))
    rows = [
        ["criterion", f"`{settings.criterion}`", _criterion(tasks), _link(of, "rules")],
        ["token position", f"{positions}, encoders and decoders", of["position"].answer, _link(of, "position")],
        ["fraction of the layers", f"{DEFAULT_RATIO:g}", _share(tasks), _link(of, "half")],
        ["samples", f"{settings.max_samples}", of["samples"].answer, _link(of, "samples")],
        ["strategy", f"`{train.strategy}`", STATIC, _link(of, "ways")],
        ["learning rate of a comparison", f"`--tune {grid.tune}`", RATES, "[TREC](older-tables.md)"],
    ]
    head = "# Defaults, and what they rest on"
    return "\n\n".join([head, table(["", "default", "why", "from"], rows), FOOT]) + "\n"


RATES = """\
Rates are chosen by random layers, so that no criterion is favoured. The winners of a comparison are tuned once more \
with `--tune each`."""


def _link(of: dict[str, Page], name: str) -> str:
    return f"[{of[name].question}]({name}.md)"


def _criterion(tasks: Sequence[Task]) -> str:
    won: dict[str, list[str]] = {}
    lost: dict[str, list[str]] = {}
    made, kept = 0, rewarded.trainings()
    for rival, words in (RIVALS | {RANDOM: "random layers"}).items():
        apart = {task.name: (task.apart(task.find(CKA), task.find(rival)), task.unit) for task in tasks}
        for of, size in each():
            chosen = of.chosen(size)
            if rival in chosen:
                apart[f"{of.words} ({size} layers)"] = of.apart(chosen[CKA], chosen[rival]), POINTS
        made += len(decoders.differences(CKA, rival, decoders.others()))
        if rival in rewarded.NAMES:
            for way, by in rewarded.WAYS.items():
                found = difference(rewarded.runs(kept, way, CKA), rewarded.runs(kept, way, rival))
                apart[f"SmolLM2 on sums {by}"] = found, POINTS
        for name, (found, unit) in apart.items():
            word = beats(found, unit)
            made += word != "-"
            if word != "inconclusive" and word != "-":
                (won if word == "better" else lost).setdefault(words, []).append(name)
    said = [f"better than {words} on {', '.join(names)}" for words, names in won.items()]
    said += [f"worse than {words} on {', '.join(names)}" for words, names in lost.items()]
    nowhere = "" if lost else "; worse nowhere"
    said = said or ["no significant difference"]
    trained = f"{decoders.beaten_and_beating()}. {shares_beaten(CRITERIA)}"
    return f"{made} comparisons. CKA's choice was {'. It was '.join(said)}{nowhere}. {trained}."


def _share(tasks: Sequence[Task]) -> str:
    lost = [t.name for t in tasks if all(beats(t.from_all(name), t.unit) == "worse" for name in (LAST, CKA))]
    beside = f"; both halves are worse on {', '.join(lost)}" if lost else ""
    return f"Half is the paper's and saves time and memory{beside}. Where that is not needed, train all layers."


STATIC = """\
Changes nothing that a Trainer does; of the other training variants none is better at its cost everywhere."""
