"""Whether anything was learned: whether some training beats what needs none. Where none does, nothing is ranked."""

from __future__ import annotations

from collections.abc import Sequence

from layersift.evaluation.classes import Majority
from layersift.experiment.choices import UNTOUCHED, Choice
from layersift.experiment.judge import Trained, runs_of
from layersift.statistics.intervals import Interval, Runs, difference, mean_score

TRY = "Check the labels and the learning rate, or train for more epochs."


def nothing_learned(choices: Sequence[Choice], trained: Trained, majority: Majority | None) -> str | None:
    """What to say where no row beats the most common class, or the base model, beyond its interval.

    The most common class counts for accuracy, a constant class for Matthews' correlation, and the base model, where it
    was judged, for all other metrics.

    Returns:
        None where a row beats it, where one does by a score without an interval, or where there is nothing to beat.
    """
    runs = {choice: runs_of(choice, trained) for choice in choices}
    rows = [of for choice, of in runs.items() if choice.masks[0] and of.scores]
    bar = _constant_class(trained.metric, majority)
    if bar is not None:
        beaten = [_beats(mean_score(of), bar) for of in rows]
        what = f"always {majority.name!r}, the most common class in training" if majority else ""
    else:
        base = next((of for choice, of in runs.items() if choice.name == UNTOUCHED and of.scores), None)
        beaten = [] if base is None else [_improves(of, base, trained.unit.sign) for of in rows]
        what = "the base model without training"
    if not beaten or any(one is not False for one in beaten):
        return None
    unit = trained.unit
    level = "" if bar is None else f" ({trained.metric} {unit.tell(bar)} {unit.name})"
    return f"Nothing was learned: no row scores significantly better than {what}{level}. So nothing is ranked. {TRY}"


def _constant_class(metric: str, majority: Majority | None) -> float | None:
    """What a constant class scores; None where that is not known."""
    name, _, source = metric.partition(" ")
    if majority is None:
        return None
    return 0.0 if name == "matthews" else majority.accuracy.get(source) if name == "accuracy" else None


def _beats(score: Interval, bar: float) -> bool | None:
    """None where the score is higher, but has no interval."""
    if score.low is None:
        return None if score.value > bar else False
    return score.low > bar


def _improves(of: Runs, base: Runs, sign: int) -> bool | None:
    apart = difference(of, base)
    if apart is None or sign * apart.value <= 0:
        return False
    return None if apart.low is None else not apart.holds_zero
