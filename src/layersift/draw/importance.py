"""The importance of every layer: bars with their intervals, the selected ones coloured, the undefined ones marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layersift.draw.pictures import BLUE, GREY, RED, altair, rows_of


@dataclass(frozen=True)
class LayerBars:
    """What is drawn of one ranking of M layers."""

    name: str  # of the criterion
    importance: Sequence[float | None]
    selected: Sequence[int]
    undefined: Mapping[int, str] = field(default_factory=dict)  # layer -> why it has no importance
    low: Sequence[float | None] | None = None  # of the intervals
    high: Sequence[float | None] | None = None
    membership: Sequence[float] | None = None  # how probably a layer belongs among the selected
    marked: Mapping[int, str] = field(default_factory=dict)  # layer -> what else to mind there, in a word or two

    def rows(self) -> list[dict[str, Any]]:
        """A row a layer."""
        return [
            {
                "criterion": self.name,
                "layer": layer,
                "score": value,
                "low": value if self.low is None else self.low[layer],
                "high": value if self.high is None else self.high[layer],
                "in the top": None if self.membership is None else self.membership[layer],
                "chosen": "selected" if layer in self.selected else "frozen",
                "note": self.undefined.get(layer, ""),
                "top": max(0.0, value or 0.0, (self.high[layer] if self.high else None) or 0.0),
                "mark": "undefined" if layer in self.undefined else self.marked.get(layer, ""),
            }
            for layer, value in enumerate(self.importance)
        ]


def axis_of(metric: str) -> str:
    """What an axis of importances is called: of a similarity, what it is taken from."""
    name = {"cka": "CKA", "cka-biased": "biased CKA"}.get(metric)
    return f"importance (1 \u2212 {name})" if name else f"importance, {metric or 'not scored'}"


def importance_chart(rankings: Sequence[LayerBars], axis: str = "score") -> Any:
    """Every layer's score with its interval; of several rankings one is chosen from a list on the page."""
    alt = altair()
    tooltip = [
        alt.Tooltip("layer:O"),
        alt.Tooltip("score:Q", format=".4g"),
        alt.Tooltip("low:Q", format=".4g"),
        alt.Tooltip("high:Q", format=".4g"),
        alt.Tooltip("in the top:Q", format=".0%"),
        alt.Tooltip("chosen:N"),
        alt.Tooltip("note:N"),
    ]
    base = alt.Chart(rows_of([row for ranking in rankings for row in ranking.rows()]))
    if len(rankings) > 1:
        base = base.transform_filter("datum.criterion == criterion")
    layer = alt.X("layer:O", title="layer (from 0, as PEFT counts)", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    bars = base.mark_bar().encode(
        x=layer,
        y=alt.Y("score:Q", title=axis),
        color=alt.Color(
            "chosen:N",
            scale=alt.Scale(domain=["selected", "frozen"], range=[BLUE, GREY]),
            legend=alt.Legend(orient="top"),
        ).title(None),
        tooltip=tooltip,
    )
    # Dark within white, so that they are seen on bars of any colour and on light and dark pages.
    halo, core = (
        base.mark_rule(color=colour, strokeWidth=width).encode(
            x="layer:O", y=alt.Y("low:Q", title=axis), y2="high:Q", tooltip=tooltip
        )
        for colour, width in (("white", 5), ("#1f2328", 2))
    )
    marks = (
        base.transform_filter("datum.mark != ''")
        .mark_text(angle=270, align="left", baseline="middle", color=RED, fontSize=10, dx=4)
        .encode(x="layer:O", y=alt.Y("top:Q", title=axis), text="mark:N", tooltip=tooltip)
    )
    chart = bars + halo + core + marks
    if len(rankings) > 1:
        names = [ranking.name for ranking in rankings]
        choice = alt.param(name="criterion", value=names[0], bind=alt.binding_select(options=names, name="criterion "))
        chart = chart.add_params(choice)
    return chart
