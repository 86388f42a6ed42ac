"""What an advice leaves on disk: all of it as JSON, a page, and a recipe that `layersift run` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layersift.advise.adviser import Advice
from layersift.advise.candidates import Priced
from layersift.advise.trial import trial_place
from layersift.config.fields import json_values
from layersift.config.limits import UTILISATION
from layersift.files import new_directory, write_json, write_text
from layersift.provenance import made_by
from layersift.report.advice_page import advice_page
from layersift.report.advice_text import advice_words, recipe_text


def write_advice(advice: Advice, output: Path) -> None:
    """advice.json, advice.html and, where something fits, recipe.yaml, under ``output``, which appears as a whole; a
    trial's trainings are moved there."""
    with new_directory(output, "advise") as place:
        write_json(place / "advice.json", advice_json(advice))
        write_text(place / "advice.html", advice_page(advice))
        if advice.recommended is not None:
            write_text(place / "recipe.yaml", recipe_text(advice, advice.recommended.variant))
    if advice.trial is not None and trial_place(output).exists():  # else it is another command's, not yet ended
        trial_place(output).rename(output / "trial")


def advice_json(advice: Advice) -> dict[str, Any]:
    """As JSON values."""
    return {
        "schema_version": 2,
        **made_by(),
        "model": advice.recipe.model.name,
        "data": advice.recipe.data.data,
        "task": advice.situation.task,
        "limits": json_values(advice.limits),
        "samples": advice.samples,
        "num_layers": advice.num_layers,
        "base_bytes": advice.base_bytes,
        "shared_by": advice.devices.to_json(),
        "flops_a_second": advice.flops_a_second,
        "estimated_on": _estimated_on(advice),
        "remedies": [{"flag": one.flag, "fits": one.fits, "memory": one.memory.to_json()} for one in advice.remedies],
        "tried_on_these_data": advice.trial is not None,
        "trial": json_values(advice.trial),
        "rate_search": json_values(advice.search),
        "words": advice_words(advice),
        "variants": [_priced_json(one, advice) for one in advice.priced],
        "spare": [_priced_json(one, advice) for one in advice.spare],
        "just_missed": _missed_json(advice),
    }


def _priced_json(one: Priced, advice: Advice) -> dict[str, Any]:
    kind = advice.situation.kind(one.variant.kind)
    return {
        "fits": one.fits,
        "risk": kind.risk,
        "evidence": kind.evidence,
        "measured": json_values(kind.measured),
        **json_values(one),
        "memory_bytes": one.memory_bytes,
        "memory": one.memory.to_json(),
    }


def _estimated_on(advice: Advice) -> dict[str, Any] | None:
    """By what times on a device elsewhere are estimated; None where they were measured."""
    device = advice.limits.device
    if device is None:
        return None
    peak = device.peak(advice.computed_in)
    return {"device": device.name, "computed_in": advice.computed_in, "peak": peak, "utilisation": UTILISATION}


def _missed_json(advice: Advice) -> dict[str, Any] | None:
    if advice.just_missed is None:
        return None
    nearest, needed = advice.just_missed
    return {"name": nearest.variant.name, "needs": needed}
