"""The charts of a comparison and of an oracle, in Altair: one description for the page, for PNG and for SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from layersift.compare.agreement import between_criteria
from layersift.compare.oracle import Oracle
from layersift.compare.standings import UNTOUCHED, Contest, Standing
from layersift.compare.statistics import unit_of
from layersift.errors import LayersiftError

BLUE, ORANGE, GREY = "#4c78a8", "#f58518", "#9aa0a6"


def altair() -> Any:
    """The library, with one clear line where it is missing.

    Raises:
        LayersiftError: it is not installed.
    """
    try:
        import altair as alt
        import vl_convert  # noqa: F401 - what turns charts into pictures
    except ImportError:
        raise LayersiftError("the report's charts need `pip install 'layersift[report]'`") from None
    return alt


def _data(rows: list[dict[str, Any]]) -> Any:
    return altair().Data(values=rows)


def importance(contest: Contest) -> Any:
    """Every layer's score with its interval; on the page another criterion can be chosen."""
    alt = altair()
    rows = []
    scored = [s for s in contest.scored if s.size == contest.scored[0].size]
    for s in scored:
        for layer, value in enumerate(s.scores.importance):
            sure = s.stability
            rows.append(
                {
                    "criterion": s.scores.criterion,
                    "layer": layer,
                    "score": value,
                    "low": sure.low[layer] if sure else value,
                    "high": sure.high[layer] if sure else value,
                    "in the top": sure.membership[layer] if sure else None,
                    "chosen": "selected" if layer in s.layers else "frozen",
                    "note": s.scores.undefined.get(layer, ""),
                }
            )
    names = [s.scores.criterion for s in scored]
    choice = alt.param(name="criterion", value=names[0], bind=alt.binding_select(options=names, name="criterion "))
    tooltip = [
        alt.Tooltip("layer:O"),
        alt.Tooltip("score:Q", format=".4g"),
        alt.Tooltip("low:Q", format=".4g"),
        alt.Tooltip("high:Q", format=".4g"),
        alt.Tooltip("in the top:Q", format=".0%"),
        alt.Tooltip("chosen:N"),
        alt.Tooltip("note:N"),
    ]
    base = alt.Chart(_data(rows)).transform_filter("datum.criterion == criterion")
    colour = alt.Color(
        "chosen:N", scale=alt.Scale(domain=["selected", "frozen"], range=[BLUE, GREY]), legend=alt.Legend(orient="top")
    )
    bars = base.mark_bar().encode(
        x=alt.X("layer:O", title="layer (from 0, as PEFT counts)", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("score:Q", title="score"),
        color=colour.title(None),
        tooltip=tooltip,
    )
    rules = base.mark_rule(color="#888888", strokeWidth=2).encode(
        x="layer:O", y=alt.Y("low:Q", title="score"), y2="high:Q", tooltip=tooltip
    )
    return (bars + rules).add_params(choice)


def similarity(contest: Contest) -> Any:
    """Debiased CKA of every representation with every other."""
    alt = altair()
    rows = [{"R_i": i, "R_j": j, "CKA": value} for i, row in enumerate(contest.matrix) for j, value in enumerate(row)]
    return (
        alt.Chart(_data(rows))
        .mark_rect()
        .encode(
            x=alt.X("R_i:O", title="R_i", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("R_j:O", title="R_j"),
            color=alt.Color("CKA:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1], clamp=True)),
            tooltip=["R_i:O", "R_j:O", alt.Tooltip("CKA:Q", format=".4f")],
        )
    )


def selections(contest: Contest, size: int) -> Any:
    """Every criterion's choice as a row of cells, paler where it is not sure."""
    alt = altair()
    rows = []
    for s in (s for s in contest.scored if s.size == size):
        for layer in range(contest.num_layers):
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
    base = alt.Chart(_data(rows)).encode(
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


def convergence(contest: Contest, size: int) -> Any:
    """How much of the whole sample's choice smaller samples find."""
    alt = altair()
    rows = [
        {"criterion": s.scores.criterion, "samples": n, "found": share}
        for s in contest.scored
        if s.size == size
        for n, share in s.converged
    ]
    return (
        alt.Chart(_data(rows))
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


def agreement(contest: Contest, size: int) -> Any:
    """Rank correlation of every pair of criteria."""
    alt = altair()
    rows = between_criteria(contest, size)
    order = list(dict.fromkeys(str(r["a"]) for r in rows))
    return (
        alt.Chart(_data(rows))
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


COSTS: dict[str, tuple[str, Callable[[Standing], float | None]]] = {
    "parameters": ("trained parameters", lambda s: s.parameters),
    "time": ("seconds of training", lambda s: s.seconds),
    "memory": ("peak memory, MiB", lambda s: None if s.memory is None else s.memory / 2**20),
}


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of (cost, score) no other beats: one that costs no more and scores more, or costs less and scores alike."""
    return [
        not any((c <= cost and s > score) or (c < cost and s >= score) for c, s in points) for cost, score in points
    ]


def tradeoff(contest: Contest, cost: str) -> Any:
    """Score against a cost, what nothing beats on both in orange and joined."""
    alt = altair()
    unit = unit_of(contest.metric)
    sign = 1 if unit.higher_is_better else -1
    title, read = COSTS[cost]
    drawn = [
        (s, s.score, value)
        for s in contest.standings
        if s.score is not None and (value := read(s)) is not None and s.entry.name != UNTOUCHED
    ]
    front = pareto([(value, sign * score.value) for _, score, value in drawn])
    several = len({s.entry.method for s in contest.standings}) > 1
    rows = [
        {
            "layers": f"{s.entry.name}, {s.entry.size} of {contest.num_layers}"
            + (f", {s.entry.method}" if several else ""),
            "mask": s.entry.masks[0] if len(s.entry.masks) == 1 else f"{len(s.entry.masks)} draws",
            "cost": value,
            "score": score.value * unit.factor,
            "low": (score.low if score.low is not None else score.value) * unit.factor,
            "high": (score.high if score.high is not None else score.value) * unit.factor,
            "front": "on the Pareto front" if best else "beaten on both",
        }
        for (s, score, value), best in zip(drawn, front, strict=True)
    ]
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("cost:Q", title=title, scale=alt.Scale(zero=False)),
        y=alt.Y("score:Q", title=f"{contest.metric}, {unit.name}", scale=alt.Scale(zero=False)),
        tooltip=[
            "layers:N",
            "mask:N",
            alt.Tooltip("cost:Q", format=",.4g"),
            alt.Tooltip("score:Q", format=".4g"),
            alt.Tooltip("low:Q", format=".4g"),
            alt.Tooltip("high:Q", format=".4g"),
        ],
    )
    colour = alt.Color(
        "front:N",
        scale=alt.Scale(domain=["on the Pareto front", "beaten on both"], range=[ORANGE, BLUE]),
        legend=alt.Legend(orient="top", title=None),
    )
    named = alt.Y("low:Q", title=f"{contest.metric}, {unit.name}")
    bars = base.mark_rule(opacity=0.35).encode(y=named, y2="high:Q", color=colour)
    line = base.transform_filter("datum.front == 'on the Pareto front'").mark_line(color=ORANGE, opacity=0.5)
    return bars + line + base.mark_circle(size=70).encode(color=colour)


def subsets(oracle: Oracle) -> Any:
    """All subsets in the order of their scores, with the criteria's names at their choices."""
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
    tooltip = ["place:Q", "mask:N", alt.Tooltip("score:Q", format=".4g"), "criteria:N"]
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("place:O", title="place among all subsets", axis=alt.Axis(labelAngle=0, labelOverlap=True))
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
        layers += alt.Chart(_data(level)).mark_rule(strokeDash=[4, 4], color=ORANGE).encode(y="all:Q")
    return layers
