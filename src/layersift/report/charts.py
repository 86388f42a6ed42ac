"""The charts of a comparison and of an oracle, in Altair: one description for the page, for PNG and for SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from layersift.draw import BLUE, GREY, ORANGE, LayerBars, altair, importance_chart, place_names, rows_of
from layersift.experiment.choices import BASE
from layersift.experiment.compare import Comparison
from layersift.experiment.judge import Judgement, constant_class
from layersift.experiment.oracle import Oracle
from layersift.experiment.prepare import between_criteria
from layersift.report.tables import masks_told
from layersift.statistics.intervals import Interval, pareto, unit_of


def importance(comparison: Comparison) -> Any:
    """Every layer's score with its interval, of the criterion that is chosen on the page."""
    scored = [s for s in comparison.scoring.scored if s.size == comparison.scoring.scored[0].size]
    bars = [
        LayerBars(
            s.scores.criterion,
            s.scores.importance,
            s.layers,
            s.scores.undefined,
            s.stability.low if s.stability else None,
            s.stability.high if s.stability else None,
            s.stability.membership if s.stability else None,
        )
        for s in scored
    ]
    return importance_chart(bars)


def similarity(comparison: Comparison) -> Any:
    """Debiased CKA of every representation with every other."""
    alt = altair()
    rows = [
        {"R_i": i, "R_j": j, "CKA": value}
        for i, row in enumerate(comparison.scoring.matrix)
        for j, value in enumerate(row)
    ]
    return (
        alt.Chart(rows_of(rows))
        .mark_rect()
        .encode(
            x=alt.X("R_i:O", title="R_i", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("R_j:O", title="R_j"),
            color=alt.Color("CKA:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1], clamp=True)),
            tooltip=["R_i:O", "R_j:O", alt.Tooltip("CKA:Q", format=".4f")],
        )
    )


def selections(comparison: Comparison, size: int) -> Any:
    """Every criterion's choice as a row of cells, paler where it is not sure."""
    alt = altair()
    rows = []
    for s in (s for s in comparison.scoring.scored if s.size == size):
        for layer in range(comparison.num_layers):
            sure = s.stability.membership[layer] if s.stability else float(layer in s.layers)
            rows.append(
                {
                    "criterion": s.scores.criterion,
                    "layer": layer,
                    "probability": sure,
                    "chosen": "selected" if layer in s.layers else "frozen",
                }
            )
    order = list(dict.fromkeys(str(r["criterion"]) for r in rows))
    base = alt.Chart(rows_of(rows)).encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)), y=alt.Y("criterion:N", sort=order, title=None)
    )
    tooltip = ["criterion:N", "layer:O", "chosen:N", alt.Tooltip("probability:Q", format=".0%")]
    cells = base.mark_rect(stroke="#88888855").encode(
        color=alt.Color(
            "probability:Q",
            scale=alt.Scale(domain=[0, 1], range=["#88888822", BLUE]),
            title="in the top",
            legend=alt.Legend(format=".0%"),
        ),
        tooltip=tooltip,
    )
    dots = (
        base.transform_filter("datum.chosen == 'selected'").mark_circle(size=22, color=ORANGE).encode(tooltip=tooltip)
    )
    return cells + dots


def convergence(comparison: Comparison, size: int) -> Any:
    """How much of the whole sample's choice smaller samples find."""
    alt = altair()
    rows = [
        {"criterion": s.scores.criterion, "samples": n, "found": share}
        for s in comparison.scoring.scored
        if s.size == size
        for n, share in s.converged
    ]
    return (
        alt.Chart(rows_of(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("samples:Q", scale=alt.Scale(type="log", nice=False), title="samples"),
            y=alt.Y("found:Q", axis=alt.Axis(format="%"), scale=alt.Scale(zero=False), title="of the layers chosen"),
            color=alt.Color(
                "criterion:N",
                title=None,
                scale=alt.Scale(scheme="tableau20"),
                legend=alt.Legend(orient="top", columns=3),
            ),
            tooltip=["criterion:N", "samples:Q", alt.Tooltip("found:Q", format=".0%")],
        )
    )


def agreement(comparison: Comparison, size: int) -> Any:
    """Rank correlation of every pair of criteria."""
    alt = altair()
    rows = between_criteria(comparison.scoring, size)
    order = list(dict.fromkeys(str(r["a"]) for r in rows))
    return (
        alt.Chart(rows_of(rows))
        .mark_rect()
        .encode(
            x=alt.X("a:N", sort=order, title=None, axis=alt.Axis(labelAngle=-45)),
            y=alt.Y("b:N", sort=order, title=None),
            color=alt.Color(
                "correlation:Q", scale=alt.Scale(scheme="redblue", domain=[-1, 1]), title="rank correlation"
            ),
            tooltip=[
                "a:N",
                "b:N",
                alt.Tooltip("correlation:Q", format=".2f"),
                alt.Tooltip("overlap:Q", format=".0%"),
            ],
        )
    )


COSTS: dict[str, tuple[str, Callable[[Judgement], float | None]]] = {
    "flops": ("FLOPs, by those of all layers", lambda s: s.choice.flops),
    "parameters": ("trained parameters", lambda s: s.parameters),
    "time": ("seconds of training", lambda s: s.seconds),
    "memory": ("peak memory, MiB", lambda s: None if s.memory is None else s.memory / 2**20),
}

FRONT, BEATEN, UNRANKED = "on the Pareto front", "beaten on both", "not ranked"
NAMED_IN = (300, 230)  # pixels, of the smallest chart that a page draws


def tradeoff(comparison: Comparison, cost: str) -> Any:
    """Score against a cost, what nothing beats on both in orange and joined."""
    alt = altair()
    unit = unit_of(comparison.metric)
    title, read = COSTS[cost]
    drawn = [
        (s, s.score, value)
        for s in comparison.rows
        if s.score is not None and (value := read(s)) is not None and s.choice.name != BASE
    ]
    front = pareto([(value, unit.sign * score.value) for _, score, value in drawn])
    kinds = {FRONT: ORANGE, BEATEN: BLUE} if comparison.nothing_learned is None else {UNRANKED: BLUE}
    several = len({s.choice.train.method for s in comparison.rows}) > 1
    rows = [
        {
            "layers": f"{s.choice.name}, {s.choice.size} of {comparison.num_layers}"
            + (f", {s.choice.train.method}" if several else "")
            + _length(s, comparison),
            "mask": masks_told(s.choice.masks),
            "cost": value,
            "score": score.value * unit.factor,
            "low": (score.low if score.low is not None else score.value) * unit.factor,
            "high": (score.high if score.high is not None else score.value) * unit.factor,
            "front": list(kinds)[0 if best else -1],
            "short": s.choice.name + _length(s, comparison),
        }
        for (s, score, value), best in zip(drawn, front, strict=True)
    ]
    base = alt.Chart(rows_of(rows)).encode(
        x=alt.X("cost:Q", title=title, scale=alt.Scale(zero=False)),
        y=alt.Y("score:Q", title=f"{comparison.metric}, {unit.name}", scale=alt.Scale(zero=False)),
        tooltip=[
            "layers:N",
            "mask:N",
            alt.Tooltip("cost:Q", format=",.4g"),
            alt.Tooltip("score:Q", format=".4g"),
            alt.Tooltip("low:Q", format=".4g"),
            alt.Tooltip("high:Q", format=".4g"),
        ],
    )
    scale = alt.Scale(domain=list(kinds), range=list(kinds.values()))
    colour = alt.Color("front:N", scale=scale, legend=alt.Legend(orient="top", title=None, symbolOpacity=1))
    named = alt.Y("low:Q", title=f"{comparison.metric}, {unit.name}")
    bars = base.mark_rule(opacity=0.35).encode(y=named, y2="high:Q", color=colour)
    line = base.transform_filter(f"datum.front == '{FRONT}'").mark_line(color=ORANGE, opacity=0.5)
    points = base.mark_circle(size=70).encode(color=colour) + _names(rows, f"{comparison.metric}, {unit.name}")
    level = _majority(comparison, [score for _, score, _ in drawn])
    return alt.layer(*level, bars, *([line] if FRONT in kinds else []), points)


def _majority(comparison: Comparison, scores: Sequence[Interval]) -> list[Any]:
    """A line at what always the most common class scores, where that is near what is drawn; else nothing."""
    alt = altair()
    unit, bar = unit_of(comparison.metric), constant_class(comparison.metric, comparison.majority)
    lowest = min(score.value if score.low is None else score.low for score in scores)
    highest = max(score.value if score.high is None else score.high for score in scores)
    if bar is None or bar < lowest - (highest - lowest):
        return []
    named = comparison.majority.name if comparison.majority is not None else ""
    level = alt.Chart(rows_of([{"score": bar * unit.factor, "said": f"always {named!r}"}]))
    title = f"{comparison.metric}, {unit.name}"
    words = level.mark_text(align="left", dx=4, dy=-6, fontSize=10, color=GREY)
    line = level.mark_rule(strokeDash=[2, 3], color=GREY).encode(y=alt.Y("score:Q", title=title))
    return [line, words.encode(y=alt.Y("score:Q", title=title), x=alt.value(0), text="said:N")]


def _length(row: Judgement, comparison: Comparison) -> str:
    """The epochs of a row, where they are not the recipe's."""
    epochs = row.choice.train.epochs
    return "" if epochs in (None, comparison.recipe.train.epochs) else f", {epochs:.3g} epochs"


def _names(rows: list[dict[str, Any]], title: str) -> Any:
    """The points' names beside them, those on the front first, where there is room; half a page wide at least.

    What is drawn in points that lie on one another has one name, of all of them.
    """
    alt = altair()
    together: dict[tuple[float, float], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: str(row["front"]) != FRONT):
        together.setdefault((row["cost"], row["score"]), []).append(row)
    names = [", ".join(dict.fromkeys(str(row["short"]) for row in those)) for those in together.values()]
    # Intervals reach beyond the points, above and below.
    lowest, highest = min(row["low"] for row in rows), max(row["high"] for row in rows)
    edges = [(min(x for x, _ in together), lowest), (max(x for x, _ in together), highest)]
    sides = place_names([*together, *edges], [*names, "", ""], *NAMED_IN)[: len(names)]
    layers = [
        alt.Chart(rows_of([{"cost": x, "score": y, "name": name}]))
        .mark_text(align=side.align, dx=side.dx, dy=side.dy, fontSize=10, color=GREY)
        .encode(x="cost:Q", y=alt.Y("score:Q", title=title), text="name:N")
        for (x, y), name, side in zip(together, names, sides, strict=True)
        if side is not None
    ]
    return alt.layer(*layers)


def curves(comparison: Comparison, table: tuple[str, int, float | None]) -> Any:
    """Score on held-back rows against the FLOPs done, a line a choice of one table."""
    alt = altair()
    unit = unit_of(comparison.metric)
    shown = [curve for curve in comparison.curves.curves if curve.choice.table == table]
    rows = [
        {"layers": curve.choice.name, "flops": done, "score": score * unit.factor}
        for curve in shown
        for done, score in zip(curve.flops, curve.scores, strict=True)
    ]
    title = f"{comparison.metric}, {unit.name}"
    lines = (
        alt.Chart(rows_of(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("flops:Q", title="FLOPs done, by all layers' whole training"),
            y=alt.Y("score:Q", title=title, scale=alt.Scale(zero=False)),
            color=alt.Color(
                "layers:N",
                title=None,
                sort=[curve.choice.name for curve in shown],
                scale=alt.Scale(scheme="tableau20"),
                legend=alt.Legend(orient="top", columns=3),
            ),
            tooltip=["layers:N", alt.Tooltip("flops:Q", format=".2f"), alt.Tooltip("score:Q", format=".4g")],
        )
    )
    if comparison.curves.target is None:
        return lines
    level = alt.Chart(rows_of([{"score": comparison.curves.target * unit.factor}]))
    return lines + level.mark_rule(strokeDash=[4, 4], color=GREY).encode(y=alt.Y("score:Q", title=title))


def subsets(oracle: Oracle) -> Any:
    """All subsets in their order, with the criteria's names at their choices."""
    alt = altair()
    unit = unit_of(oracle.metric)
    named: dict[str, list[str]] = {}
    for p in oracle.placed:
        named.setdefault(p.mask, []).append(p.criterion)
    rows = [
        {
            "place": place,
            "mask": s.mask,
            "score": s.mean * unit.factor,
            "low": min(s.scores) * unit.factor,
            "high": max(s.scores) * unit.factor,
            "criteria": ", ".join(named.get(s.mask, [])),
            "chosen": "chosen by a criterion" if s.mask in named else "chosen by none",
        }
        for place, s in enumerate(oracle.subsets, start=1)
    ]
    title = "place among all subsets" if oracle.nothing_learned is None else "subset, not ranked"
    tooltip = ["place:Q", "mask:N", alt.Tooltip("score:Q", format=".4g"), "criteria:N"]
    base = alt.Chart(rows_of(rows)).encode(
        x=alt.X("place:O", title=title, axis=alt.Axis(labelAngle=0, labelOverlap=True))
    )
    colour = alt.Color(
        "chosen:N",
        scale=alt.Scale(domain=["chosen by a criterion", "chosen by none"], range=[BLUE, GREY]),
        legend=alt.Legend(orient="top", title=None),
    )
    score = alt.Y("score:Q", title=f"{oracle.metric}, {unit.name}", scale=alt.Scale(zero=False))
    named = alt.Y("low:Q", title=f"{oracle.metric}, {unit.name}")
    rules = base.mark_rule(opacity=0.5).encode(y=named, y2="high:Q", color=colour)
    points = base.mark_circle(size=80).encode(y=score, color=colour, tooltip=tooltip)
    layers = rules + points
    if oracle.all_layers is not None:
        level = [{"all": oracle.all_layers * unit.factor}]
        layers += alt.Chart(rows_of(level)).mark_rule(strokeDash=[4, 4], color=ORANGE).encode(y="all:Q")
    return layers
