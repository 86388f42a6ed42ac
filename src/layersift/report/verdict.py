"""What a comparison comes to, in one sentence that can be acted on."""

from __future__ import annotations

from layersift.experiment.choices import ALL, RANDOM, UNTOUCHED
from layersift.experiment.compare import Comparison
from layersift.experiment.judge import Judgement
from layersift.report.tables import Group, groups_of, ordered
from layersift.statistics.verdicts import unit_of


def verdict_first(comparison: Comparison) -> list[str]:
    """A sentence for each table of equal epochs: what costs least of all that is not seen to lose on all layers."""
    groups = [group for group in groups_of(comparison) if group.budget is None]
    found = [(group, _sentence(comparison, group)) for group in groups]
    several = len(found) > 1
    return [f"{group.title(comparison.num_layers)}: {said}" if several else said for group, said in found if said]


def _sentence(comparison: Comparison, group: Group) -> str:
    unit = unit_of(comparison.metric)
    rows = [row for row in ordered(comparison, group) if row.choice.name not in (ALL, UNTOUCHED)]
    judged = [row for row in rows if row.from_all is not None and row.from_all.half_width is not None]
    if not judged:
        return ""
    whole = "training all layers"
    better = [row for row in judged if _apart(row) and unit.sign * _value(row) > 0]
    alike = [row for row in judged if not _apart(row)]
    if not better and not alike:
        # The rows come with the best first.
        best = judged[0]
        return (
            f"Everything else scored less than {whole}; {_named(best)} lost least, {unit.tell(abs(_value(best)))} "
            f"{unit.name}{_at(best)}."
        )
    cheapest = min([*better, *alike], key=_price)
    said = "scored more than" if cheapest in better else "cannot be told from"
    return (
        f"The cheapest that lost nothing to be seen is {_named(cheapest)}{_at(cheapest)}: it {said} {whole} "
        f"({unit.tell(_value(cheapest), sign=True)} {unit.name}, {_between(cheapest, comparison)})."
    )


def _value(row: Judgement) -> float:
    return row.from_all.value if row.from_all else 0.0


def _apart(row: Judgement) -> bool:
    return row.from_all is not None and not row.from_all.holds_zero


def _price(row: Judgement) -> tuple[float, float, bool]:
    """By operations, then by parameters; a criterion's name before that of chance."""
    operations = row.choice.operations
    return (
        float("inf") if operations is None else round(operations, 3),
        row.parameters or 0.0,
        row.choice.name == RANDOM,
    )


def _named(row: Judgement) -> str:
    masks = row.choice.masks
    return f"{row.choice.name} ({masks[0] if len(masks) == 1 else f'{len(masks)} draws'})"


def _at(row: Judgement) -> str:
    return "" if row.choice.operations is None else f", at {row.choice.operations:.2f} of the operations"


def _between(row: Judgement, comparison: Comparison) -> str:
    unit, found = unit_of(comparison.metric), row.from_all
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return f"{unit.tell(found.low, sign=True)} to {unit.tell(found.high, sign=True)}, {found.over}"
