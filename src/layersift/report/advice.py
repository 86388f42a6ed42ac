"""An advice in plain words, as JSON, as a recipe that `layersift run` takes, and as a picture."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from layersift.config.arms import UNTOUCHED
from layersift.config.fields import default_of, json_values
from layersift.draw.pictures import BLUE, GREY, ORANGE, altair, picture, rows_of
from layersift.experiment.advise import Advice
from layersift.experiment.prices import Priced
from layersift.experiment.trial import Trial, trial_place
from layersift.files import new_directory, write_bytes, write_json, write_text
from layersift.provenance import made_by
from layersift.report.words import advice_words
from layersift.statistics.pareto import pareto
from layersift.statistics.verdicts import unit_of


def advised_recipe(advice: Advice) -> dict[str, Any]:
    """The recommendation as a recipe: its layers beside the base model, with every setting of the training written."""
    recipe = advice.to_recipe()
    sections = {name: _changed(getattr(recipe, name)) for name in ("model", "data", "evaluate")}
    sections["data"]["max_length"] = recipe.data.max_length
    kept = {name: values for name, values in sections.items() if values}
    train = json_values(recipe.train)
    return {**kept, "train": train, "output": recipe.output, "arms": [*recipe.arms, UNTOUCHED], "seed": recipe.seed}


def _changed(settings: Any) -> dict[str, Any]:
    """What of some settings is not as it is by default."""
    return {
        f.name: json_values(value)
        for f in fields(settings)
        if (value := getattr(settings, f.name)) is not None and value != default_of(f)
    }


def write_advice(advice: Advice, output: Path) -> None:
    """advice.json and costs.png, recipe.yaml where something fits and front.png where it was tried, under ``output``,
    which appears as a whole; a trial's trainings are moved there."""
    with new_directory(output, "advise") as place:
        write_json(place / "advice.json", advice_json(advice))
        write_bytes(place / "costs.png", picture(costs(advice), ".png"))
        if advice.recommended is not None:
            values = advised_recipe(advice)
            write_text(place / "recipe.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        if advice.trial is not None:
            write_bytes(place / "front.png", picture(front(advice, advice.trial), ".png"))
    if advice.trial is not None and trial_place(output).exists():  # else it is another command's, not yet ended
        trial_place(output).rename(output / "trial")


def advice_json(advice: Advice) -> dict[str, Any]:
    """As JSON values."""
    return {
        "schema_version": 1,
        **made_by(),
        "model": advice.recipe.model.name,
        "data": advice.recipe.data.data,
        "limits": json_values(advice.limits),
        "samples": advice.samples,
        "num_layers": advice.num_layers,
        "base_bytes": advice.base_bytes,
        "operations_a_second": advice.operations_a_second,
        "tried_on_these_data": advice.trial is not None,
        "trial": json_values(advice.trial),
        "words": advice_words(advice),
        "candidates": [_priced_json(one, advice) for one in advice.priced],
        "spare": [_priced_json(one, advice) for one in advice.spare],
        "just_missed": _missed_json(advice),
    }


def _priced_json(one: Priced, advice: Advice) -> dict[str, Any]:
    variant = advice.task.variant(one.candidate.kind)
    return {
        "mask": one.candidate.mask(advice.num_layers),
        "fits": one.fits,
        "risk": variant.risk,
        "evidence": variant.evidence,
        **json_values(one),
    }


def _missed_json(advice: Advice) -> dict[str, Any] | None:
    if advice.just_missed is None:
        return None
    nearest, needed = advice.just_missed
    return {"name": nearest.candidate.name, "needs": needed}


def costs(advice: Advice) -> Any:
    """What every candidate takes of FLOPs and of memory, in the order in which they are advised."""
    alt = altair()
    chosen = advice.recommended
    rows = [
        {
            "name": one.candidate.name,
            "operations": one.operations,
            "memory": one.memory_bytes / 10**9,
            "what": "advised" if one is chosen else "fits" if one.fits else "does not fit",
        }
        for one in advice.priced
    ]
    colour = alt.Color(
        "what:N",
        title=None,
        scale=alt.Scale(domain=["advised", "fits", "does not fit"], range=[ORANGE, BLUE, GREY]),
        legend=alt.Legend(orient="top"),
    )
    base = alt.Chart(rows_of(rows)).mark_bar().encode(color=colour).properties(width=260)
    order = [row["name"] for row in rows]
    names = alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=320))
    operations = base.encode(x=alt.X("operations:Q", title="FLOPs, by those of all layers"), y=names)
    memory = base.encode(
        x=alt.X("memory:Q", title="peak memory, GB"),
        y=alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labels=False, ticks=False)),
    )
    return operations | memory


def front(advice: Advice, trial: Trial) -> Any:
    """What each way scored, a panel a round, those whose whole training costs least first; in orange what nothing beats
    on both. Lines: the 95% interval of the difference from the round's first."""
    alt = altair()
    unit = unit_of(trial.metric)
    cost = {one.candidate.name: one.operations for one in advice.priced}
    rows = []
    for number, held in enumerate(trial.rounds, 1):
        scored = [(tried, tried.score) for tried in held.tried if tried.score is not None]
        best = pareto([(cost[tried.name], unit.sign * score) for tried, score in scored])
        first = scored[0][1]
        for (tried, score), on_front in zip(scored, best, strict=True):
            apart = tried.from_first
            low, high = (None, None) if apart is None else (apart.low, apart.high)
            rows.append(
                {
                    "round": f"round {number}: {held.share:.2g} of each",
                    "name": f"{tried.name} ({cost[tried.name]:.2f})",
                    "operations": cost[tried.name],
                    "score": score * unit.factor,
                    "low": (score if low is None else first + low) * unit.factor,
                    "high": (score if high is None else first + high) * unit.factor,
                    "front": "on the front of score and cost" if on_front else "beaten on both",
                }
            )
    domain = ["on the front of score and cost", "beaten on both"]
    base = alt.Chart(rows_of(rows)).encode(
        y=alt.Y(
            "name:N",
            title=None,
            sort=alt.EncodingSortField("operations"),
            axis=alt.Axis(labelLimit=320),
        ),
        color=alt.Color(
            "front:N",
            title=None,
            scale=alt.Scale(domain=domain, range=[ORANGE, BLUE]),
            legend=alt.Legend(orient="top", labelLimit=300),
        ),
    )
    score = alt.X("score:Q", title=f"{trial.metric}, {unit.name}", scale=alt.Scale(zero=False))
    between = alt.X("low:Q", title=f"{trial.metric}, {unit.name}", scale=alt.Scale(zero=False))
    panel = base.mark_rule(opacity=0.4).encode(x=between, x2="high:Q") + base.mark_circle(size=80).encode(x=score)
    faceted = panel.properties(width=420).facet(row=alt.Row("round:N", title=None))
    said = "in brackets: the FLOPs of the whole training, by those of all layers"
    return faceted.resolve_scale(y="independent", x="independent").properties(title=said)
