"""What a comparison comes to, in one sentence that can be acted on."""

from __future__ import annotations

from layersift.experiment.choices import ALL, RANDOM, UNTOUCHED
from layersift.experiment.compare import Comparison
from layersift.experiment.judge import Judgement
from layersift.report.tables import Group, groups_of, masks_told, ordered
from layersift.statistics.verdicts import unit_of


def verdict_first(comparison: Comparison) -> list[str]:
    """A sentence for each table of equal epochs: what costs least of all that is not seen to lose on all layers.

    Where nothing was learned, that alone.
    """
    if comparison.nothing_learned is not None:
        return [comparison.nothing_learned]
    groups = [group for group in groups_of(comparison) if group.budget is None]
    found = [(group, _sentence(comparison, group)) for group in groups]
    several = len(found) > 1
    return [f"{group.title(comparison.num_layers)}: {said}" if several else said for group, said in found if said]


def _sentence(comparison: Comparison, group: Group) -> str:
    unit, whole = unit_of(comparison.metric), "training all layers"
    rows = [row for row in ordered(comparison, group) if row.choice.name not in (ALL, UNTOUCHED)]
    judged = [(row, row.from_all) for row in rows if row.from_all is not None and row.from_all.half_width is not None]
    if not judged:
        return ""
    lost = [(row, apart) for row, apart in judged if not apart.holds_zero and unit.sign * apart.value < 0]
    least = max((unit.sign * apart.value for _, apart in lost), default=float("-inf"))
    # One that does worse than what is seen to lose has an interval too wide to tell, and that is no merit.
    held = [(row, apart) for row, apart in judged if unit.sign * apart.value > least]
    if not held:
        best, apart = max(lost, key=lambda one: unit.sign * one[1].value)
        wide = ", ".join(row.choice.name for row, apart in judged if apart.holds_zero)
        beside = f", or has an interval too wide to tell ({wide})" if wide else ""
        among = " of what is seen to lose" if wide else ""
        return (
            f"Everything else scored less than {whole}{beside}; {_named(best)} lost least{among}, "
            f"{unit.tell(abs(apart.value))} {unit.name}{_at(best)}."
        )
    cheapest, apart = min(held, key=lambda one: _price(one[0]))
    said = "cannot be told from" if apart.holds_zero else "scored more than"
    value, low, high = (unit.tell(edge, sign=True) for edge in (apart.value, apart.low, apart.high) if edge is not None)
    return (
        f"The cheapest that lost nothing to be seen is {_named(cheapest)}{_at(cheapest)}: it {said} {whole} "
        f"({value} {unit.name}, {low} to {high}, {apart.over})."
    )


def _price(row: Judgement) -> tuple[float, float, bool]:
    """By operations, then by parameters; a criterion's name before that of chance."""
    operations = row.choice.operations
    return (
        float("inf") if operations is None else round(operations, 3),
        row.parameters or 0.0,
        row.choice.name == RANDOM,
    )


def _named(row: Judgement) -> str:
    return f"{row.choice.name} ({masks_told(row.choice.masks)})"


def _at(row: Judgement) -> str:
    return "" if row.choice.operations is None else f", at {row.choice.operations:.2f} of the operations"
