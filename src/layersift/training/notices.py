"""What a finished training tells of itself: whether it was too short, and which classes it never predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from layersift.records.runs import Look
from layersift.statistics.intervals import Runs, difference
from layersift.training.watch import read_log

FEWEST_ENTRIES = 12  # of the log, so that each quarter has three
SURE = 0.01  # how often noise alone may pass for a falling loss
OF_WHOLE_FALL = 0.1  # what the last quarter has to add, by what the whole training gained
QUARTER = 0.25  # of the steps, over which the held-back score is compared
CLASSES_NAMED = 5

LONGER = "train for more --epochs"
LOSS_FALLING = f"the loss was still falling at the end: {LONGER}; held-back rows (--eval-data) show whether it helps"
SCORE_RISING = f"the held-back score was still rising at the end: {LONGER}"


def notices_of(
    directory: Path, looks: Sequence[Look], higher_is_better: bool, name_classes: bool = True
) -> tuple[str, ...]:
    """What should be known of the training in a run directory, each with what to do.

    Args:
        looks: the evaluations during training, as far as the weights that were kept; none without held-back rows.
        higher_is_better: of the looks' outcomes, such as 1 for a right answer.
        name_classes: that are never predicted; not where the finished run is judged on the same rows, which names them.
    """
    said = [LOSS_FALLING] if loss_is_falling([entry["loss"] for entry in read_log(directory)]) else []
    if score_is_rising(looks, higher_is_better):
        said.append(SCORE_RISING)
    if name_classes and looks and looks[-1].never_predicted:
        said.append(never_predicted_notice(looks[-1].never_predicted, "held-back"))
    return tuple(said)


def loss_is_falling(losses: Sequence[float]) -> bool:
    """Whether the last quarter's mean loss lies below that of the quarter before, by more than noise and not by little.

    Noise: Welch's one-sided test over the entries of both quarters. Little: less than a tenth of the fall from the
    first quarter to the last one. Of a log with few entries nothing is said.
    """
    if len(losses) < FEWEST_ENTRIES:
        return False
    values, size = np.asarray(losses, dtype=float), len(losses) // 4
    first, before, last = values[:size], values[-2 * size : -size], values[-size:]
    fall = before.mean() - last.mean()
    if fall <= 0 or fall < OF_WHOLE_FALL * (first.mean() - last.mean()):
        return False
    if before.std() == 0 and last.std() == 0:
        return True
    from scipy import stats  # takes a second to import

    return bool(stats.ttest_ind(before, last, equal_var=False, alternative="greater").pvalue < SURE)


def score_is_rising(looks: Sequence[Look], higher_is_better: bool) -> bool:
    """Whether the last look's outcomes are better than those a quarter of the steps before, by a paired interval."""
    earlier = [look for look in looks if look.share <= looks[-1].share - QUARTER + 1e-9]
    if not earlier or len(looks[-1].outcomes) < 2:
        return False
    apart = difference(_run(looks[-1]), _run(earlier[-1]))
    return apart is not None and not apart.holds_zero and (apart.value > 0) == higher_is_better


def _run(look: Look) -> Runs:
    outcomes = np.array(look.outcomes)
    return Runs({0: float(np.average(outcomes, weights=look.weights or None))}, {0: outcomes}, True, look.weights)


def never_predicted_notice(names: Sequence[str], rows: str) -> str:
    """That classes are never predicted on rows of that name, and what to do."""
    listed = ", ".join(repr(name) for name in names[:CLASSES_NAMED])
    more = f" and {len(names) - CLASSES_NAMED} more" if len(names) > CLASSES_NAMED else ""
    several = "classes" if len(names) > 1 else "class"
    are = "are" if len(names) > 1 else "is"
    return f"{several} {listed}{more} {are} never predicted on the {rows} rows: {LONGER}, or add rows of each"
