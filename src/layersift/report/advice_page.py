"""advice.html: one page on which limits are moved and the answer is read; no network, no library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from layersift.advise.adviser import Advice
from layersift.advise.candidates import Priced
from layersift.advise.other_limits import Option
from layersift.advise.trial import Round, Tried
from layersift.plan.memory import tell_bytes
from layersift.progress import time_told
from layersift.report.advice_text import advice_words, describe, memory_range, recipe_text, risk_of
from layersift.report.tables import difference_text
from layersift.statistics.intervals import unit_of


def advice_page(advice: Advice) -> str:
    """The page as HTML."""
    template = Path(__file__).with_name("advice.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    data = json.dumps(_page_data(advice), ensure_ascii=False)
    return environment.from_string(template).render(
        model=advice.recipe.model.name,
        data=advice.recipe.data.data,
        advice=advice,
        words=advice_words(advice),
        rounds=_rounds(advice),
        # "</script" or "<!--" would end or open what HTML sees there; in JSON the sign may be written otherwise.
        values=data.replace("<", "\\u003c"),
    )


def _page_data(advice: Advice) -> dict[str, Any]:
    """What the script reads: options in their order, and the positions of both sliders with their words."""
    other = advice.other_limits
    device = advice.limits.device
    where = "here" if device is None else f"on {device.name}, estimated"
    if advice.devices.count > 1:
        where = f"on {advice.devices.count} times {'this device' if device is None else device.name}, estimated"
    whole = next(way.seconds / way.flops for option in other.options for way in option.ways)
    return {
        "options": [_option_values(one, advice) for one in other.options],
        "shorter": [[_option_values(one, advice) for one in other.shorter.get(share, ())] for share in other.shares],
        "memories": [{"value": one, "words": tell_bytes(one)} for one in other.memories],
        "shares": [
            {"value": one, "words": f"{one:.2f} of all layers' FLOPs, {time_told(one * whole)} {where}"}
            for one in other.shares
        ],
        "memory": other.memory,
        "share": other.share,
        "base": advice.base_bytes,
        "tried": advice.trial is not None,
        "time": f"time {where}",
    }


def _option_values(option: Option, advice: Advice) -> dict[str, Any]:
    misses = [] if option.allowed else list(option.ways[0].misses)
    return {"misses": misses, "ways": [_way_values(way, advice) for way in option.ways]}


def _way_values(way: Priced, advice: Advice) -> dict[str, Any]:
    return {
        "name": way.variant.name,
        "says": describe(advice, way.variant),
        "risk": risk_of(advice, way.variant),
        "flops": way.flops,
        "time": time_told(way.seconds),
        "low": way.memory.low,
        "memory": way.memory_bytes,
        "needed": way.memory.needed,
        "memoryWords": memory_range(way.memory),
        "parameters": f"{way.parameters:,}",
        "recipe": recipe_text(advice, way.variant),
    }


def _rounds(advice: Advice) -> list[dict[str, Any]]:
    """What a trial measured: of each round its title, and of each variant its score and interval on an axis."""
    if advice.trial is None:
        return []
    return [
        {
            "title": f"Round {number}: {100 * held.share:.3g}% of each training",
            "rows": _scores(held, advice.trial.metric),
        }
        for number, held in enumerate(advice.trial.rounds, 1)
    ]


def _scores(held: Round, metric: str) -> list[dict[str, Any]]:
    """The interval is that of the difference from the round's first; places are percent of an axis."""
    unit, scored = unit_of(metric), [(tried, tried.score) for tried in held.tried if tried.score is not None]
    first = scored[0][1]
    spans = {tried.name: _span(tried, score, first) for tried, score in scored}
    least, most = min(low for low, _ in spans.values()), max(high for _, high in spans.values())
    room = 0.08 * (most - least) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - least + room) / (most - least + 2 * room), 2)

    rows: list[dict[str, Any]] = [
        {
            "name": tried.name,
            "score": place(score),
            "low": place(spans[tried.name][0]),
            "high": place(spans[tried.name][1]),
            "words": f"{unit.tell(score)} {unit.name}",
            "apart": "the round's first" if tried.from_first is None else difference_text(tried.from_first, unit),
        }
        for tried, score in scored
    ]
    failed = [one for one in held.tried if one.score is None]
    return rows + [{"name": one.name, "score": None, "words": "failed", "apart": one.why} for one in failed]


def _span(tried: Tried, score: float, first: float) -> tuple[float, float]:
    apart = tried.from_first
    if apart is None or apart.low is None or apart.high is None:
        return score, score
    return first + apart.low, first + apart.high
