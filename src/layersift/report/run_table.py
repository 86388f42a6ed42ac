"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Callable

from layersift.config.arms import UNTOUCHED
from layersift.experiment.choices import ALL, RANDOM
from layersift.experiment.judge import Judgement, times_left_out
from layersift.experiment.run import Outcome
from layersift.experiment.smoke import smoke_notice
from layersift.report.tables import masks_told
from layersift.statistics.intervals import Interval
from layersift.statistics.verdicts import unit_of

# What training cost, and how it is told.
COSTS: tuple[tuple[str, Callable[[Judgement], float | None], Callable[[float], str]], ...] = (
    ("trained parameters", lambda row: row.parameters, lambda v: f"{v:,.0f}"),
    ("seconds", lambda row: row.seconds, lambda v: f"{v:.1f}"),
    ("peak memory", lambda row: row.memory, lambda v: f"{v / 2**20:,.0f} MiB"),
    ("adapter", lambda row: row.adapter, lambda v: f"{v / 2**20:.2f} MiB"),
)


def run_rows(outcome: Outcome) -> list[list[str]]:
    """Header and one row an arm; behind each figure, in brackets, its ratio to the arm that adapts all layers."""
    names = list(next(iter(outcome.arms.values()))[0].metrics)
    of_all = next((row for row in outcome.rows if row.choice.name == ALL and row.score is not None), None)
    metrics = [heading(name) for name in names]
    rows = [["layers", *metrics[:1], "from all", *metrics[1:], "rate", *(name for name, _, _ in COSTS)]]
    for row in outcome.rows:
        scores = []
        for place, name in enumerate(names):
            value, reference = row.metrics.get(name), of_all.metrics.get(name) if of_all else None
            spread = _spread(row.score) if place == 0 else ""
            missing = "failed" if row.failures and not row.metrics else "undefined"
            scores.append(missing if value is None else _with_ratio(value, reference, f"{value:.4f}{spread}"))
        costs = [
            _with_ratio(value, read(of_all) if of_all else None, tell(value))
            if (value := read(row)) is not None
            else "-"
            for _, read, tell in COSTS
        ]
        named = f"{row.choice.name} {masks_told(row.choice.masks)}".strip()
        apart = f"same layers as {row.same_as}" if row.same_as else _apart(row.from_all)
        rate = f"{row.choice.learning_rate:g}" if row.choice.masks[0] else "-"
        rows.append([named, scores[0], apart, *scores[1:], rate, *costs])
    return rows


def _spread(score: Interval | None) -> str:
    return "" if score is None or score.half_width is None else f" ± {score.half_width:.4f}"


def _apart(found: Interval | None) -> str:
    if found is None:
        return "-"
    between = "" if found.low is None or found.high is None else f" ({found.low:+.4f} to {found.high:+.4f})"
    return f"{found.value:+.4f}{between}"


def _with_ratio(value: float, of_all: float | None, text: str) -> str:
    return text if not of_all else f"{text} ({value / of_all:.2f})"


def heading(metric: str) -> str:
    """A metric's name with the direction in which it is better."""
    return f"{metric.replace('_', ' ')} {'↑' if unit_of(metric).higher_is_better else '↓'}"


def run_caption(outcome: Outcome) -> str:
    """What a reader has to know to read the table."""
    first = next(iter(outcome.arms.values()))[0]
    notes = [f"{first.samples} test samples, one seed; ± and the brackets of 'from all' are 95% intervals over them."]
    if any(row.score is not None and row.score.half_width is None for row in outcome.rows):
        notes = [f"{first.samples} test samples, one seed, which says nothing of the spread of this score."]
    random = next((row.choice for row in outcome.rows if row.choice.name == RANDOM), None)
    if random is not None:
        several = len(random.masks) > 1
        notes.append(
            f"'random' is the mean of {len(random.masks)} draws, over which its interval is taken as well."
            if several
            else "'random' is one draw, which may be a lucky or an unlucky one."
        )
    notes.append("In brackets behind other figures the ratio to all layers.")
    if times_left_out(outcome.rows):
        notes.append("Trainings were made in different surroundings, so that their times are not compared.")
    notes.append("Peak memory is what training needs above the loaded model.")
    if UNTOUCHED in outcome.arms and outcome.new_head:
        notes.append("The untouched model's head is random: the checkpoint has none for this task.")
    if outcome.majority is not None:
        notes.append(f"For comparison: {outcome.majority}.")
    notes += [f"Note: {notice}." for notice in outcome.notices]
    notes += [f"{row.choice.name}: {notice}." for row in outcome.rows for notice in row.notices]
    notes += [f"{name} failed: {why}" for name, why in outcome.failures.items()]
    return smoke_notice(outcome.recipe) + " ".join(notes)
