"""Question 2: from what size of data, model, rank and length of training on does half of the layers match all?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from layersift.experiment.choices import ALL, LAST, Choice
from layersift.experiment.judge import Trained, runs_of
from layersift.files import read_json
from layersift.report.tables import difference_text as told
from layersift.statistics.intervals import POINTS, Interval, Runs, difference, mean_score
from pages.measured import HALVES, RESULTS, beats, held, told_and_held
from pages.page import Page, intervals, picture_of, table
from pages.subsets import COMMAND as SUBSETS
from pages.subsets import each
from trained import judged_on_test, read_choice, results_in

PLACE = RESULTS / "evidence" / "minilm-trec-conditions"
WORDS = """\
MiniLM on TREC, ten seeds, 500 test rows; a learning rate for each condition, chosen on rows held back. All layers, the
last half and CKA's half of the six, for the same epochs. At other ranks and lengths the last half alone was trained.
Brackets hold the worst seed. Short trainings collapse now and then: 18.8 points is
a model that predicts one class. Collapsed seeds count."""
SCORED = ("all layers (worst seed)", "the last half (worst seed)")
APART = """\
**Does it depend on it?** The last half's difference from all layers at one end of an axis, minus that at the
other end. Above zero, half of the layers do better where there is more."""
MODELS = """\
**And the model?** Halves from all layers, three seeds: MiniLM with 400 rows for six epochs, MPNet with 256 for four."""
CHANGES = """\
Other tasks: the first table is of one, with short texts. Rates chosen by more than one seed, which would be lower.
Models of billions of weights. More data ([inconclusive, too](half.md))."""


@dataclass(frozen=True)
class Condition:
    """A size of data, a rank and a length, and what was trained there."""

    name: str
    rows: int
    choices: Mapping[str, Choice]
    trained: Trained

    def runs(self, name: str) -> Runs:
        """One choice's scores and outcomes."""
        return runs_of(self.choices[name], self.trained)

    def from_all(self, name: str) -> Interval | None:
        """A half from all layers; None where it was not trained."""
        return difference(self.runs(name), self.runs(ALL)) if name in self.choices else None

    @cached_property
    def lost(self) -> Runs:
        """What the last half scores from all layers, by seed and test row."""
        half, whole = self.runs(LAST), self.runs(ALL)
        return Runs(
            scores={seed: half.scores[seed] - whole.scores[seed] for seed in half.scores},
            outcomes={seed: np.asarray(half.outcomes[seed]) - whole.outcomes[seed] for seed in half.outcomes},
            averages=half.averages,
            weights=half.weights,
            asked=half.asked,
        )


def conditions() -> dict[str, Condition]:
    """All of them, by name."""
    kept = read_json(PLACE / "conditions.json", "conditions")
    found = {}
    for rows, of in kept["rows"].items():
        trained = judged_on_test(results_in(PLACE, f"rows-{rows}/"))
        for name, choices in of.items():
            read = [read_choice(choice) for choice in choices]
            found[name] = Condition(name, int(rows), {choice.name: choice for choice in read}, trained)
    return found


def axes(found: Mapping[str, Condition]) -> dict[str, list[Condition]]:
    """What was varied, from little to much; each axis but the first goes through the condition in its middle."""
    sizes = sorted((one for one in found.values() if one.name.endswith(" rows")), key=lambda one: one.rows)
    (base,) = {one.rows for one in found.values() if one not in sizes}
    usual = found[f"{base} rows"]
    return {
        "training rows": sizes,
        "rank": [found["rank 2"], usual, found["rank 32"]],
        "length": [found["0.5 of the epochs"], usual, found["2 of the epochs"]],
    }


def _label(axis: str, one: Condition) -> str:
    usual = {"training rows": one.name, "rank": "rank 8", "length": "1 of the epochs"}[axis]
    return usual if one.name.endswith(" rows") else one.name


def page() -> Page:
    """All layers and their halves along each axis."""
    rows: list[list[str]] = []
    ends: list[list[str]] = []
    drawn: list[tuple[str, str, Interval | None]] = []
    apart: dict[str, Interval | None] = {}
    of = axes(conditions())
    for axis, along in of.items():
        for one in along:
            cells = [told_and_held(one.from_all(name), POINTS) for name in HALVES]
            rows.append([axis, _label(axis, one), *(_scores(one.runs(name)) for name in (ALL, LAST)), *cells])
            drawn += [(_label(axis, one), words, one.from_all(name)) for name, words in HALVES.items()]
        apart[axis] = difference(along[-1].lost, along[0].lost)
        span = f"{_label(axis, along[-1])} from {_label(axis, along[0])}"
        ends.append([axis, span, told(apart[axis], POINTS), _word(apart[axis])])
    return Page(
        name="conditions",
        question="From what size of data, model, rank and length of training on does half match all?",
        answer=_sentence(apart, of),
        sections=[
            WORDS,
            table(["", "", *SCORED, *(f"{words} from all" for words in HALVES.values())], rows),
            picture_of("conditions", "The halves from all layers along each axis"),
            APART,
            table(["axis", "ends", "the last half's difference, from end to end", ""], ends),
            MODELS,
            table(["model and task", "layers", *(f"{words} from all" for words in HALVES.values())], _models()),
        ],
        commands=["python benchmarks/evidence_conditions.py SHARED DATA MODELS", SUBSETS],
        changes=CHANGES,
        charts={"conditions": intervals(drawn, POINTS, "points from all layers, equal epochs")},
    )


def _scores(runs: Runs) -> str:
    return f"{POINTS.tell(mean_score(runs).value)} ({POINTS.tell(min(runs.scores.values()))})"


def _models() -> list[list[str]]:
    found = []
    for task, size in each():
        if 2 * size == task.num_layers:
            masks, whole = task.chosen(size), "1" * task.num_layers
            cells = [told_and_held(task.apart(masks[name], whole), POINTS) for name in HALVES]
            found.append([task.words, f"{size} of {task.num_layers}", *cells])
    return found


def _word(found: Interval | None) -> str:
    return {"better": "more helps half", "worse": "more helps all"}.get(beats(found, POINTS), "inconclusive")


def _sentence(apart: Mapping[str, Interval | None], of: Mapping[str, Sequence[Condition]]) -> str:
    some = []
    for axis, found in apart.items():
        words = [(held(one.from_all(LAST), POINTS), _label(axis, one)) for one in of[axis]]
        lost = [label for word, label in words if word.startswith("worse")]
        kept = [label for word, label in words if word == "non-inferior"]
        if _word(found) != "inconclusive" and lost and kept:
            some.append(f"{axis}: worse at {', '.join(lost)}, non-inferior at {', '.join(kept)}")
    if some:
        return f"It depends on {'; '.join(some)}."
    lost_at, gained_at = _where(of, "worse"), _where(of, "better")
    ends = "; ".join(f"{axis} {told(found, POINTS)}, {_word(found)}" for axis, found in apart.items())
    seen = f"worse at {', '.join(lost_at)}" if lost_at else "nowhere significantly worse"
    seen += f", and better at {', '.join(gained_at)}" if gained_at else ""
    return (
        f"No such point was found. On TREC the last half is {seen} points from all layers. From the least to the most "
        f"of an axis that difference changes: {ends}."
    )


def _where(of: Mapping[str, Sequence[Condition]], word: str) -> list[str]:
    """The conditions in which the last half beats all layers or is beaten."""
    found = []
    for axis, along in of.items():
        for one in along:
            apart = one.from_all(LAST)
            if beats(apart, POINTS) == word:
                found.append(f"{_label(axis, one)} by {told(apart, POINTS)}")
    return found
