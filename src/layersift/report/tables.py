"""The tables of a run, a comparison and an oracle as rows of texts, with their captions and a verdict in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from layersift.evaluation.metrics import Majority
from layersift.experiment.choices import ALL, BASE, KINDS, MATCHED, RANDOM, Choice
from layersift.experiment.compare import Comparison
from layersift.experiment.judge import Judgement, times_left_out
from layersift.experiment.oracle import Oracle
from layersift.experiment.run import Outcome
from layersift.experiment.smoke import smoke_notice
from layersift.statistics.intervals import Interval, Unit, unit_of


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the header; figures to the right. What a cell says cannot break the table."""
    header, *body = rows
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "".join("| " + " | ".join(_escaped(cell) for cell in line) + " |\n" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


REFERENCES = (ALL, MATCHED, BASE)


class Group(NamedTuple):
    """The rows of one table: what is compared with one another."""

    method: str
    size: int
    budget: float | None = None  # the fraction of all layers' FLOPs that each may take; None: equal epochs

    def title(self, num_layers: int) -> str:
        """For people."""
        group = f"{self.size} of {num_layers} layers, {self.method}"
        if self.budget is None:
            return group
        return f"{group}: each trained for {self.budget:.2f} of the FLOPs that all layers take"


def groups_of(comparison: Comparison) -> list[Group]:
    """The tables of a comparison."""
    return list(dict.fromkeys(Group(*row.choice.table) for row in comparison.rows))


def headings(comparison: Comparison) -> list[tuple[str, list[list[str]]]]:
    """A titled table for each group, the best row first and the references last; the title says what it can see."""
    return [
        (f"{group.title(comparison.num_layers)}{_visible(comparison, group)}", judgement_rows(comparison, group))
        for group in groups_of(comparison)
    ]


def _visible(comparison: Comparison, group: Group) -> str:
    """How small a difference from all layers the table could have seen."""
    apart = [row.from_all for row in ordered(comparison, group) if row.from_all is not None]
    visible = [interval.visible for interval in apart if interval.visible is not None]
    if not visible:
        return ""
    unit = unit_of(comparison.metric)
    return f" (four times of five it sees a difference from all of {unit.tell(median(visible))} {unit.name})"


def ordered(comparison: Comparison, group: Group) -> list[Judgement]:
    """The rows of a group, the best first and the references last; as they were asked for where nothing was learned."""
    sign = -unit_of(comparison.metric).sign
    rows = [row for row in comparison.rows if row.choice.table == group]
    if comparison.nothing_learned is not None:
        return rows

    def key(row: Judgement) -> tuple[bool, float]:
        return row.choice.name in REFERENCES, sign * row.score.value if row.score else float("inf")

    return sorted(rows, key=key)


def masks_told(masks: Sequence[str]) -> str:
    """The mask of a choice, or how many random ones it stands for."""
    return masks[0] if len(masks) == 1 else f"{len(masks)} draws"


def judgement_rows(comparison: Comparison, group: Group) -> list[list[str]]:
    """Header and one row a choice of layers."""
    unit = unit_of(comparison.metric)
    low = {row.choice: said for row in ordered(comparison, group) if (said := _no_better(comparison, row))}
    header = [
        "layers",
        "mask",
        comparison.metric,
        "from all",
        "from random",
        *([MAJORITY] if low else []),
        "parameters",
        "FLOPs",
        *(["epochs"] if group.budget is not None else []),
        "rate",
        "seconds",
        "memory",
        "scoring",
    ]
    rows = [header]
    for s in ordered(comparison, group):
        e = s.choice
        rank = f", rank {e.train.rank}" if e.name in (MATCHED, *KINDS.values()) else ""
        rows.append(
            [
                e.name,
                (masks_told(e.masks) or "-") + rank,
                score_text(s.score, unit) + "".join(f", {said}" for said in (s.short, s.settled) if s.score and said),
                f"same layers as {s.same_as}" if s.same_as else difference_text(s.from_all, unit),
                difference_text(s.from_random, unit),
                *([low.get(e, "-")] if low else []),
                "-" if s.parameters is None else f"{s.parameters:,.0f}",
                "-" if e.flops is None else f"{e.flops:.2f}",
                *([f"{e.train.num_epochs:.2f}"] if group.budget is not None else []),
                rate_text(e),
                "-" if s.seconds is None else f"{s.seconds:.1f}",
                "-" if s.memory is None else f"{s.memory / 2**20:,.0f} MiB",
                "-" if e.scoring_seconds is None else f"{e.scoring_seconds:.1f} s",
            ]
        )
    return rows


def rate_text(choice: Choice) -> str:
    """The learning rate of a row; a dash for the base model."""
    return f"{choice.train.rate:g}" if choice.trained else "-"


MAJORITY = "≤ majority"  # how many of a row's trainings


def _no_better(comparison: Comparison, row: Judgement) -> str:
    """How many of a row's trainings are no better than the most common class; empty where none is."""
    scores = [score for of_seed in row.scores.values() for score in of_seed if score is not None]
    low = 0 if row.choice.name == BASE else no_better(scores, comparison.metric, comparison.majority)
    return f"{low} of {len(scores)}" if low and row.score is not None else ""


def no_better(scores: Sequence[float], metric: str, majority: Majority | None) -> int:
    """How many scores are no more than what always the most common class scores, which a mean would hide."""
    bar = None if majority is None or metric != "accuracy" else majority.accuracy.get("")
    return 0 if bar is None else sum(score <= bar for score in scores)


def groups_with_curves(comparison: Comparison) -> list[Group]:
    """The tables some of whose rows have curves."""
    drawn = {curve.choice.table for curve in comparison.curves.curves}
    return [group for group in groups_of(comparison) if group in drawn]


def score_text(score: Interval | None, unit: Unit) -> str:
    """``83.1 ± 0.6``, in the unit's scale."""
    if score is None:
        return "failed"
    spread = "" if score.half_width is None else f" ± {unit.tell(score.half_width)}"
    return unit.tell(score.value) + spread


def difference_text(difference: Interval | None, unit: Unit) -> str:
    """``-0.4 (-1.0 to +0.2)``."""
    if difference is None:
        return "-"
    if difference.low is None or difference.high is None:
        return unit.tell(difference.value, sign=True)
    return (
        f"{unit.tell(difference.value, True)} ({unit.tell(difference.low, True)} to {unit.tell(difference.high, True)})"
    )


def caption(comparison: Comparison) -> str:
    """What a reader has to know to read the tables."""
    unit = unit_of(comparison.metric)
    whole = [s for s in comparison.rows if s.score is not None and len(s.choice.masks) == 1]
    whole = [s for s in whole if not s.short and not s.settled] or whole
    over = whole[0].score.over if whole and whole[0].score else "nothing"
    draws = comparison.recipe.compare.random
    spread = "; where random layers take part, also over their draws" if draws > 1 else ""
    direction = "higher" if unit.higher_is_better else "lower"
    notes = majority_told(comparison.majority)
    notes += "".join(f" Note: {notice}." for notice in comparison.notices)
    if times_left_out(comparison.rows):
        notes += " Trainings were made in different environments, so that their times are not compared."
    return (
        f"{smoke_notice(comparison.recipe)}"
        f"{comparison.metric} in {unit.name}, {direction} is better; ± and brackets are 95% intervals over "
        f"{over}{spread}. All rows share data, order, first weights and recipe; {_rates(comparison)}. 'FLOPs' are "
        f"by those of all layers; 'scoring' is what the criterion alone would take.{notes} "
        "With many rows, one interval in twenty misses by chance alone."
    )


def _rates(comparison: Comparison) -> str:
    """The learning rates of the rows, and where they come from."""
    if len(comparison.recipe.compare.learning_rates) > 1:
        chosen = ", ".join(f"{rate.chosen:g} for {of}" for of, rate in comparison.rates.items())
        how = "for each" if comparison.recipe.compare.tune == "each" else "with random layers"
        return f"learning rates ({chosen}) were chosen {how} on rows held back from training"
    rates = sorted({row.choice.train.named_rate or 0.0 for row in comparison.rows if row.choice.trained})
    if len(rates) == 1:
        return f"learning rate {rates[0]:g}"
    return f"each row has the default learning rate of its layers and rank, {rates[0]:g} to {rates[-1]:g} ('rate')"


def majority_told(majority: Majority | None) -> str:
    """A sentence on what the most common class scores; nothing for other tasks."""
    return "" if majority is None else f" For comparison: {majority}."


OUTCOMES = ("better", "no significant difference", "worse")
UNJUDGED = "not judged"  # with one seed


def verdict_rows(comparison: Comparison, group: Group) -> list[list[str]]:
    """What the intervals allow to be said: a row a reference, and in each cell the rows of which that outcome holds.

    Nothing where nothing was learned, or nothing was compared.
    """
    if comparison.nothing_learned is not None:
        return []
    rows = [row for row in ordered(comparison, group) if row.choice.name not in REFERENCES]
    alike: dict[str, list[str]] = {}  # the names of rows that another row stands for
    for row in rows:
        if row.same_as:
            alike.setdefault(row.same_as, []).append(row.choice.name)
    outcomes_by: dict[tuple[str, str], dict[str, None]] = {}  # by reference and outcome
    sign = unit_of(comparison.metric).sign
    for row in rows:
        told = f"{', '.join([row.choice.name, *alike.get(row.choice.name, [])])} ({masks_told(row.choice.masks)})"
        lone = "one random choice" in row.verdict
        for against, apart in ((ALL, row.from_all), ("one random choice" if lone else RANDOM, row.from_random)):
            if apart is not None:
                outcomes_by.setdefault((against, _outcome(apart, sign)), {})[told] = None
    outcomes = [*OUTCOMES, *([UNJUDGED] if any(outcome == UNJUDGED for _, outcome in outcomes_by) else [])]
    table = [
        [against, *("; ".join(outcomes_by.get((against, outcome), ())) or "-" for outcome in outcomes)]
        for against in dict.fromkeys(against for against, _ in outcomes_by)
    ]
    return [["against", *outcomes], *table] if table else []


def _outcome(apart: Interval, sign: int) -> str:
    if apart.low is None or apart.half_width is None:
        return UNJUDGED
    if apart.holds_zero:
        return OUTCOMES[1]
    return OUTCOMES[0] if sign * apart.value > 0 else OUTCOMES[2]


def verdict_first(comparison: Comparison) -> list[str]:
    """A sentence for each table of equal epochs: what costs least of all that is not seen to lose on all layers.

    Where nothing was learned, that alone.
    """
    if comparison.nothing_learned is not None:
        return [comparison.nothing_learned]
    groups = [group for group in groups_of(comparison) if group.budget is None]
    sentences = [(group, _sentence(comparison, group)) for group in groups]
    several = len(sentences) > 1
    return [f"{group.title(comparison.num_layers)}: {said}" if several else said for group, said in sentences if said]


def _sentence(comparison: Comparison, group: Group) -> str:
    unit, whole = unit_of(comparison.metric), "training all layers"
    rows = [row for row in ordered(comparison, group) if row.choice.name not in (ALL, BASE)]
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
    said = "no significant difference from" if apart.holds_zero else "more than"
    value, low, high = (unit.tell(edge, sign=True) for edge in (apart.value, apart.low, apart.high) if edge is not None)
    return (
        f"The cheapest with no significant loss is {_named(cheapest)}{_at(cheapest)}: {said} {whole} "
        f"({value} {unit.name}, {low} to {high}, {apart.over})."
    )


def _price(row: Judgement) -> tuple[float, float, bool]:
    """By FLOPs, then by parameters; a criterion's name before that of chance."""
    flops = row.choice.flops
    return (
        float("inf") if flops is None else round(flops, 3),
        row.parameters or 0.0,
        row.choice.name == RANDOM,
    )


def _named(row: Judgement) -> str:
    return f"{row.choice.name} ({masks_told(row.choice.masks)})"


def _at(row: Judgement) -> str:
    return "" if row.choice.flops is None else f", at {row.choice.flops:.2f} of the FLOPs"


# What training cost, and how it is told.
COSTS: tuple[tuple[str, Callable[[Judgement], float | None], Callable[[float], str]], ...] = (
    ("trained parameters", lambda row: row.parameters, lambda v: f"{v:,.0f}"),
    ("seconds", lambda row: row.seconds, lambda v: f"{v:.1f}"),
    ("peak memory", lambda row: row.memory, lambda v: f"{v / 2**20:,.0f} MiB"),
    ("adapter", lambda row: row.adapter, lambda v: f"{v / 2**20:.2f} MiB"),
)


def run_rows(outcome: Outcome) -> list[list[str]]:
    """Header and one row a variant; behind each figure, in brackets, its ratio to that of all layers."""
    names = list(next(iter(outcome.variants.values()))[0].metrics)
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
        rows.append([named, scores[0], apart, *scores[1:], rate_text(row.choice), *costs])
    return rows


def _spread(score: Interval | None) -> str:
    return "" if score is None or score.half_width is None else f" ± {score.half_width:.4f}"


def _apart(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    between = "" if interval.low is None or interval.high is None else f" ({interval.low:+.4f} to {interval.high:+.4f})"
    return f"{interval.value:+.4f}{between}"


def _with_ratio(value: float, of_all: float | None, text: str) -> str:
    return text if not of_all else f"{text} ({value / of_all:.2f})"


def heading(metric: str) -> str:
    """A metric's name with the direction in which it is better."""
    return f"{metric.replace('_', ' ')} {'↑' if unit_of(metric).higher_is_better else '↓'}"


def run_caption(outcome: Outcome) -> str:
    """What a reader has to know to read the table."""
    first = next(iter(outcome.variants.values()))[0]
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
        notes.append("Trainings were made in different environments, so that their times are not compared.")
    notes.append("Peak memory is what training needs above the loaded model.")
    if BASE in outcome.variants and outcome.new_head:
        notes.append("The base model's head is random: the checkpoint has none for this task.")
    if outcome.majority is not None:
        notes.append(f"For comparison: {outcome.majority}.")
    notes += [f"Note: {notice}." for notice in outcome.notices]
    notes += [f"{row.choice.name}: {notice}." for row in outcome.rows for notice in row.notices]
    notes += [f"{name} failed: {why}" for name, why in outcome.failures.items()]
    return smoke_notice(outcome.recipe) + " ".join(notes)


def oracle_rows(oracle: Oracle) -> list[list[str]]:
    """Header and one row a criterion that has a place."""
    unit = unit_of(oracle.metric)
    rows = [["criterion", "mask", oracle.metric, "place", "percentile", f"lost to the best, {unit.name}"]]
    for p in oracle.placed:
        place = f"{p.place} of {p.among}"
        rows.append([p.criterion, p.mask, unit.tell(p.score), place, f"{p.percentile:.0f}", unit.tell(p.lost)])
    return rows


def oracle_caption(oracle: Oracle) -> str:
    """What a reader has to know to read the table."""
    unit = unit_of(oracle.metric)
    scores = [s.mean for s in oracle.subsets if s.drawn]
    mean, worst = unit.tell(sum(scores) / len(scores)), unit.tell(scores[-1])
    best = oracle.subsets[0]
    scored = f"Best {best.mask}: {unit.tell(best.mean)}, mean {mean}, worst {worst} {unit.name}."
    few = ""
    if oracle.nothing_learned is not None:
        scored = f"Scores from {unit.tell(min(scores))} to {unit.tell(max(scores))} {unit.name}, mean {mean}."
    elif len(scores) < oracle.total:
        few = " What lies beyond those trained is not known, so 'lost' is the least that was."
    noise = (
        ""
        if oracle.noise is None
        else f" One subset's {oracle.metric} varies by {unit.tell(oracle.noise)} over seeds (sd)."
    )
    every = [score for subset in oracle.subsets for score in subset.scores]
    low = no_better(every, oracle.metric, oracle.majority)
    collapsed = f" {low} of {len(every)} trainings are no better than that." if low else ""
    of_all = "" if oracle.all_layers is None else f" All layers: {unit.tell(oracle.all_layers)}."
    same = oracle.all_layers_learning_rate == oracle.learning_rate
    all_rate = "" if same else f", of all layers {oracle.all_layers_learning_rate:g}"
    nothing = "" if oracle.nothing_learned is None else f"{oracle.nothing_learned} "
    return (
        f"{smoke_notice(oracle.recipe)}{nothing}"
        f"{len(scores)} of {oracle.total} subsets of {oracle.size} of {oracle.num_layers} layers, "
        f"{len(oracle.seeds)} {'seed' if len(oracle.seeds) == 1 else 'seeds'}. {scored}"
        f"{of_all}{noise}{few} Learning rate {oracle.learning_rate:g}{all_rate}."
        f"{majority_told(oracle.majority)}{collapsed}"
    )
