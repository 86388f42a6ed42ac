"""Figures over several runs: the paper's trade-off and appendix, and the sweep over the number of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from layersift.draw import GREY, altair, rows_of
from layersift.experiment.judge import Judgement
from layersift.experiment.run import Outcome
from layersift.report.tables import heading

WIDTH, HEIGHT = 560, 320  # pixels
ON_TOP = {"orient": "top", "columns": 2, "labelLimit": 400, "symbolOpacity": 1}  # a legend of recipes


def draw(kind: str, outcomes: Mapping[str, Outcome]) -> Any:
    """The figure of a kind, as an Altair chart."""
    return _FIGURES[kind](outcomes)


def _title(outcomes: Mapping[str, Outcome]) -> str:
    """The scores' names with their directions."""
    return ", ".join(dict.fromkeys(heading(outcome.metric) for outcome in outcomes.values()))


def _variants(outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """A row a variant that has a score."""
    rows = []
    for name, outcome in outcomes.items():
        rows += [_variant(name, row) for row in outcome.rows if row.score is not None]
    return rows


def _variant(recipe: str, row: Judgement) -> dict[str, Any]:
    score = row.score
    assert score is not None
    return {
        "recipe": recipe,
        "variant": row.choice.name,
        "layers": row.choice.masks[0].count("1"),
        "rank": row.choice.train.rank,
        "score": score.value,
        "low": score.value if score.low is None else score.low,
        "high": score.value if score.high is None else score.high,
        "parameters": row.parameters,
        "seconds": row.seconds,
        "memory": row.memory,
    }


def _tooltip() -> list[Any]:
    alt = altair()
    figures = [alt.Tooltip(f"{name}:Q", format=",.4g") for name in ("score", "low", "high", "parameters")]
    return ["recipe:N", "variant:N", *figures]


def _tradeoff(outcomes: Mapping[str, Outcome]) -> Any:
    """Score against trainable parameters, the variants of a recipe joined by a line (the paper's Figure 1)."""
    alt = altair()
    base = alt.Chart(rows_of([row for row in _variants(outcomes) if row["parameters"]])).encode(
        x=alt.X("parameters:Q", title="trainable parameters", scale=alt.Scale(zero=False, padding=30)),
        color=alt.Color("recipe:N", title=None, legend=alt.Legend(**ON_TOP)),
    )
    score = alt.Y("score:Q", title=_title(outcomes), scale=alt.Scale(zero=False, padding=20))
    bars = base.mark_rule(opacity=0.4).encode(y=alt.Y("low:Q", title=_title(outcomes)), y2="high:Q")
    names = base.mark_text(align="left", dx=8, dy=-6, fontSize=10).encode(y=score, text="variant:N")
    lines = base.mark_line(opacity=0.5).encode(y=score)
    points = base.mark_point(filled=True, size=70).encode(
        y=score, shape=alt.Shape("variant:N", legend=None), tooltip=_tooltip()
    )
    return (lines + bars + points + names).properties(width=WIDTH, height=HEIGHT)


def _similarity(outcomes: Mapping[str, Outcome]) -> Any:
    """CKA of each layer's input and output, a line a recipe (the paper's appendix, Figure 1)."""
    alt = altair()
    rows = [
        {"recipe": name, "layer": layer, "CKA": 1 - value}
        for name, outcome in outcomes.items()
        for layer, value in enumerate(outcome.selection.importance if outcome.selection else ())
        if value is not None
    ]
    lowest = min((float(str(row["CKA"])) for row in rows), default=0.0)
    return (
        alt.Chart(rows_of(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:Q", title="layer (from 0; the paper counts from 1)", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y(
                "CKA:Q",
                title="CKA of the layer's input and output",
                scale=alt.Scale(domain=[min(0.0, lowest), 1.0]),
            ),
            color=alt.Color("recipe:N", title=None, legend=alt.Legend(**ON_TOP)),
            tooltip=["recipe:N", "layer:Q", alt.Tooltip("CKA:Q", format=".4f")],
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def _bars(outcomes: Mapping[str, Outcome]) -> Any:
    """Score of each variant, a group of bars a recipe."""
    alt = altair()
    rows = _variants(outcomes)
    base = alt.Chart(rows_of(rows)).encode(
        x=alt.X("recipe:N", title=None, sort=list(outcomes), axis=alt.Axis(labelAngle=0, labelLimit=160)),
        xOffset=alt.XOffset("variant:N", sort=list(dict.fromkeys(str(row["variant"]) for row in rows))),
    )
    bars = base.mark_bar().encode(
        y=alt.Y("score:Q", title=_title(outcomes)),
        color=alt.Color("variant:N", title=None, legend=alt.Legend(orient="top")),
        tooltip=_tooltip(),
    )
    return (bars + base.mark_rule(color="#333333").encode(y="low:Q", y2="high:Q")).properties(
        width=max(WIDTH, 110 * len(outcomes)), height=HEIGHT
    )


def _sweep(outcomes: Mapping[str, Outcome], by: str = "layers") -> Any:
    """Above, the score against the number of layers, or the rank; below, what training cost as a share of the most."""
    alt = altair()
    variants = _variants(outcomes)
    title = "layers adapted, the most important first" if by == "layers" else "rank of the adapters on all layers"
    layers = alt.X(f"{by}:Q", title=title, axis=alt.Axis(tickMinStep=1))
    colour = alt.Color("recipe:N", title=None, legend=alt.Legend(orient="top", labelLimit=400))
    base = alt.Chart(rows_of([row for row in variants if row["layers"]])).encode(x=layers, color=colour)
    score = alt.Y("score:Q", title=_title(outcomes), scale=alt.Scale(zero=False))
    upper = base.mark_line(point=True).encode(y=score, tooltip=_tooltip()) + base.mark_rule(opacity=0.5).encode(
        y=alt.Y("low:Q", title=_title(outcomes)), y2="high:Q"
    )
    untouched = [row | {"said": "base"} for row in variants if not row["layers"]]
    if untouched:
        level = alt.Chart(rows_of(untouched))
        upper += level.mark_rule(strokeDash=[4, 4], color=GREY).encode(y="score:Q")
        upper += level.mark_text(align="left", dx=4, dy=-6, fontSize=10, color=GREY).encode(
            y="score:Q", x=alt.value(0), text="said:N"
        )
    lower = (
        alt.Chart(rows_of(_shares(outcomes, by)))
        .mark_line(point=True)
        .encode(
            x=layers,
            y=alt.Y("share:Q", title="cost, as a share", scale=alt.Scale(domain=[0, 1.05])),
            color=alt.Color("recipe:N", title=None),
            strokeDash=alt.StrokeDash("cost:N", title=None, legend=alt.Legend(orient="bottom", symbolType="stroke")),
            tooltip=["recipe:N", "cost:N", f"{by}:Q", alt.Tooltip("share:Q", format=".2f")],
        )
    )
    return alt.vconcat(upper.properties(width=WIDTH, height=240), lower.properties(width=WIDTH, height=150))


def _shares(outcomes: Mapping[str, Outcome], by: str) -> list[dict[str, Any]]:
    """Each cost of each number of layers, or rank, over that of the highest."""
    shares = []
    for name, outcome in outcomes.items():
        sizes = sorted((row for row in _variants({name: outcome}) if row["layers"]), key=lambda row: int(str(row[by])))
        for cost in ("parameters", "seconds", "memory"):
            values = [row[cost] for row in sizes]
            if values and all(values):
                shares += [
                    {"recipe": name, "cost": cost, by: row[by], "share": value / values[-1]}
                    for row, value in zip(sizes, values, strict=True)
                ]
    return shares


_FIGURES: dict[str, Callable[[Mapping[str, Outcome]], Any]] = {
    "tradeoff": _tradeoff,
    "similarity": _similarity,
    "variants": _bars,
    "sweep": _sweep,
    "ranks": partial(_sweep, by="rank"),
}
