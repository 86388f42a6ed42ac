"""An advice in plain words, as JSON, as a recipe that `layersift run` takes, and as a picture."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from layersift.config.fields import default_of, json_values
from layersift.draw.pictures import BLUE, GREY, ORANGE, altair, picture, rows_of
from layersift.experiment.advise import Advice, Priced
from layersift.experiment.candidates import KINDS
from layersift.files import write_bytes, write_json, write_text
from layersift.provenance import made_by

# What each kind leaves out, and what our own runs say of it.
RISKS = {
    "all": "nothing is left out",
    "lower rank": "the adapters say less; in our runs all layers at half the rank lost less than half of the layers",
    "rising": "lower layers stop learning early; docs/strategies.md has what our runs say of it",
    "shorter": "fewer epochs; whether your task needs them, its own curve says",
    "last": "lower layers stay as they are; in our runs half of the layers lost one to two points",
    "modules": "the other modules stay as they are; we have no evidence of our own",
    "last, lower rank": "lower layers stay as they are, and the adapters say less",
    "few": "most layers stay as they are; expect to lose",
}


def advice_rows(advice: Advice) -> list[list[str]]:
    """Header and one row a candidate."""
    header = ["way of training", "fits", "operations", "time here", "memory", "parameters", "on disk", "batch"]
    return [header, *(_row(one) for one in advice.priced)]


def _row(one: Priced) -> list[str]:
    settings = one.candidate.settings
    batch = f"{settings.batch_size} x {settings.gradient_accumulation}"
    return [
        one.candidate.name,
        "yes" if one.fits else "; ".join(one.misses),
        f"{one.operations:.2f}",
        _time(one.seconds),
        f"{one.memory_bytes / 10**9:.3g} GB",
        f"{one.parameters:,}",
        f"{one.adapter_bytes / 10**6:.3g} MB",
        batch + (", checkpointing" if settings.gradient_checkpointing else ""),
    ]


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def advice_words(advice: Advice) -> list[str]:
    """One recommendation with its price and its risk, the two next best, and what would change it."""
    chosen = advice.recommended
    if chosen is None:
        return ["Nothing that is known here fits.", *(f"{help_[0].upper()}{help_[1:]}." for help_ in advice.helps)]
    settings = chosen.candidate.settings
    said = [
        f"Train {chosen.candidate.name}: {chosen.operations:.2f} of the operations that all layers take "
        f"({_time(chosen.seconds)} on this machine), {chosen.memory_bytes / 10**9:.3g} GB at the peak, "
        f"{chosen.parameters:,} parameters, {chosen.adapter_bytes / 10**6:.3g} MB on disk.",
        f"Risk: {RISKS[chosen.candidate.kind]}.",
    ]
    if settings.gradient_accumulation > advice.recipe.train.gradient_accumulation:
        said.append(
            f"Batches of {settings.batch_size} are accumulated {settings.gradient_accumulation} times: the same "
            "training in less memory."
        )
    if settings.gradient_checkpointing and not advice.recipe.train.gradient_checkpointing:
        said.append("Gradient checkpointing is on: the same training, slower, in less memory.")
    said += [
        f"Next best: {one.candidate.name} ({one.operations:.2f} of the operations, {one.memory_bytes / 10**9:.3g} GB, "
        f"{one.parameters:,} parameters). Risk: {RISKS[one.candidate.kind]}."
        for one in advice.next_best
    ]
    better = {one.candidate.kind: one for one in reversed(advice.priced) if not one.fits and _before(one, chosen)}
    said += [
        f"It would be {one.candidate.name} but for {'; '.join(one.misses)}."
        for one in sorted(better.values(), key=lambda one: KINDS.index(one.candidate.kind))
    ]
    said.append("None of this has been tried on these data; docs/advise.md says what the order rests on.")
    return said


def _before(one: Priced, other: Priced) -> bool:
    return KINDS.index(one.candidate.kind) < KINDS.index(other.candidate.kind)


def advised_recipe(advice: Advice) -> dict[str, Any]:
    """The recommendation as a recipe: its layers beside the untouched model."""
    chosen = advice.recommended
    assert chosen is not None
    mask = chosen.candidate.mask(advice.num_layers)
    recipe = replace(
        advice.recipe,
        train=chosen.candidate.settings,
        arms=(("all",) if "0" not in mask else (f"advised={mask}",)) + ("untouched",),
    )
    sections = {name: _changed(getattr(recipe, name)) for name in ("model", "data", "train", "evaluate")}
    kept = {name: values for name, values in sections.items() if values}
    return {**kept, "output": recipe.output, "arms": list(recipe.arms), "seed": recipe.seed}


def _changed(settings: Any) -> dict[str, Any]:
    """What of some settings is not as it is by default."""
    return {
        f.name: json_values(value)
        for f in fields(settings)
        if (value := getattr(settings, f.name)) is not None and value != default_of(f)
    }


def write_advice(advice: Advice, output: Path) -> None:
    """advice.json and costs.png, and recipe.yaml where something fits, under ``output``, which appears as a whole."""
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of one that was killed here
    write_json(partial / "advice.json", advice_json(advice))
    write_bytes(partial / "costs.png", picture(costs(advice), ".png"))
    if advice.recommended is not None:
        values = advised_recipe(advice)
        write_text(partial / "recipe.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    partial.rename(output)


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
        "tried_on_these_data": False,
        "words": advice_words(advice),
        "candidates": [
            {"mask": one.candidate.mask(advice.num_layers), "fits": one.fits, **json_values(one)}
            for one in advice.priced
        ],
    }


def costs(advice: Advice) -> Any:
    """What every candidate takes of operations and of memory, in the order in which they are advised."""
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
    operations = base.encode(x=alt.X("operations:Q", title="operations, by those of all layers"), y=names)
    memory = base.encode(
        x=alt.X("memory:Q", title="peak memory, GB"),
        y=alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labels=False, ticks=False)),
    )
    return operations | memory
