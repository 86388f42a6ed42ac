"""An advice on one screen, as JSON, as a recipe that `layersift run` takes, and as a picture."""

from __future__ import annotations

import math
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from layersift.adapt.methods import has_rank
from layersift.advise.adviser import Advice
from layersift.advise.candidates import FREEZING, SHORTER, freezes_prefix
from layersift.advise.demo import Followed
from layersift.advise.prices import Priced
from layersift.advise.trial import Trial, trial_place
from layersift.config.devices import UTILISATION
from layersift.config.fields import default_of, json_values
from layersift.config.train import FULL, TrainSettings
from layersift.config.variants import BASE
from layersift.draw.pictures import BLUE, GREY, ORANGE, altair, picture, rows_of
from layersift.files import new_directory, write_bytes, write_json, write_text
from layersift.plan.memory import Memory, in_one_unit, tell_bytes, unit_of_bytes
from layersift.progress import time_told
from layersift.provenance import made_by
from layersift.records.result import Variant
from layersift.report.tables import difference_text
from layersift.statistics.verdicts import pareto, unit_of

WIDTH = 80
HEADER = ["training variant", "fits", "FLOPs", "time", "memory", "parameters"]


def advice_words(advice: Advice) -> list[str]:
    """Lines of at most 80 characters: what to train and how, its risk, a table beside two others, what is missed."""
    chosen = advice.recommended
    if chosen is None:
        return _wrapped([*(f"{missed[0].upper()}{missed[1:]}." for missed in advice.missed), *_remedies(advice)])
    settings = chosen.variant.train
    return [
        *_wrapped([_what(advice, chosen.variant), _adapters(settings), _length(advice, chosen.variant)]),
        *_wrapped([f"Risk: {_risk(advice, chosen.variant)}{'; untried (--trial).' if advice.trial is None else '.'}"]),
        *_aligned([HEADER, *(_row(one) for one in (chosen, *advice.alternatives))]),
        *_wrapped([*_memory(advice, chosen), *_speed(advice)]),
        *_wrapped([" ".join([*_missed(advice), *(_spare(advice) if advice.trial is None else [])]), *_tried(advice)]),
    ]


def _wrapped(sentences: list[str]) -> list[str]:
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(sentence, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    ]


def _aligned(rows: list[list[str]]) -> list[str]:
    """A table: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(widths[0]) if place == 0 else cell.rjust(widths[place]) for place, cell in enumerate(row))
        for row in rows
    ]


def _row(one: Priced) -> list[str]:
    return [
        one.variant.name,
        "yes" if one.fits else "no",
        f"{one.flops:.2f}",
        time_told(one.seconds),
        _range(one.memory),
        f"{one.parameters:,}",
    ]


def _range(memory: Memory) -> str:
    """From low to high, in one unit."""
    (low, unit), (size, of_all) = tell_bytes(memory.low).split(), unit_of_bytes(memory.high)
    if unit != of_all:
        low = f"{memory.low / size:.2f}"
    return f"{low}-{tell_bytes(memory.high)}"


def _memory(advice: Advice, chosen: Priced) -> list[str]:
    """Whether the recommendation fits, and what takes its memory."""
    said, of = "Memory" if advice.limits.memory_bytes is None else "It will fit", chosen.memory
    parts = {"base": of.base, "adapters": of.adapters, "gradients": of.gradients}
    parts |= {"AdamW": of.optimizer, "activations": of.activations}
    return [f"{said}: {', '.join(in_one_unit(parts))}."]


def _speed(advice: Advice) -> list[str]:
    """What the times of a device elsewhere are made of."""
    device = advice.limits.device
    if device is None:
        return []
    return [f"Times are estimates: {device.described(advice.computed_in)}."]


def _remedies(advice: Advice) -> list[str]:
    """What would fit, and what would not be enough alone."""
    said = []
    for fits, begun in ((True, "These would"), (False, "Not enough alone")):
        flags = [f"{one.flag} ({tell_bytes(one.memory.high)})" for one in advice.remedies if one.fits == fits]
        said += [f"{begun}: {', '.join(flags)}."] if flags else []
    return said


def _what(advice: Advice, variant: Variant) -> str:
    first, last, count = variant.layers[0], variant.layers[-1], len(variant.layers)
    which = f"the last {count} of {advice.num_layers} layers ({first} to {last})" if first else "all layers"
    if count == 1:
        which = f"the last of {advice.num_layers} layers ({last})"
    if variant.kind == FREEZING:
        which += f" (0 to {last}), the lower ones frozen step by step"
    settings = variant.train
    if settings.method == FULL:
        return f"Train {which} themselves (method full)."
    return f"Train {which}: {settings.method} on {settings.target_modules or 'the modules that PEFT adapts'}."


def _adapters(settings: TrainSettings) -> str:
    parts = []
    if has_rank(settings.method):
        rooted = settings.method == "rslora" or settings.method_options.get("use_rslora")
        scale = settings.alpha / (math.sqrt(settings.rank) if rooted else settings.rank)
        parts += [f"rank {settings.rank}, scale {scale:.3g} (alpha {settings.alpha:g})"]
        parts += ["other ranks as given"] if settings.ranks else []
    parts += [f"dropout {settings.dropout:g}"] if settings.method != FULL else []
    warmup = f"warm-up {100 * settings.warmup_ratio:g}%" if settings.warmup_ratio else "no warm-up"
    said = "; ".join([", ".join(parts), f"learning rate {settings.rate:g}, {settings.scheduler}, {warmup}"])
    said = said.removeprefix("; ")
    return f"{said[0].upper()}{said[1:]}."


def _length(advice: Advice, variant: Variant) -> str:
    settings = variant.train
    said = (
        f"{settings.num_epochs:.3g} epochs of {advice.samples} rows, {settings.steps(advice.samples)} steps, batch "
        f"{settings.batch_size} x {settings.gradient_accumulation}"
    )
    if freezes_prefix(variant.layers, settings):
        where = f"layer {variant.layers[0]}" if variant.layers[0] else "the cut"
        said += f"; {'dropout' if settings.prefix_dropout else 'no dropout'} below {where}"
    return said + ("; gradient checkpointing." if settings.gradient_checkpointing else ".")


def _risk(advice: Advice, variant: Variant) -> str:
    tried = None if advice.trial is None else advice.trial.last(variant.name)
    if variant.kind == SHORTER and tried is not None and tried[0].share == 1.0:
        return "few epochs; the trial trained that long on these rows, with one seed"
    return advice.situation.kind(variant.kind).risk


def _missed(advice: Advice) -> list[str]:
    if advice.just_missed is None:
        return []
    nearest, needed = advice.just_missed
    flags = " ".join(f"--{flag} {_limit(advice, flag, value)}" for flag, value in needed.items())
    return [f"Just missed: {flags} would allow {nearest.variant.name}."]


def _limit(advice: Advice, flag: str, value: float) -> str:
    """A limit as one writes it, rounded up."""
    if flag == "params":
        return f"{value:.0f}"
    if flag == "time" and advice.limits.seconds is None:
        return f"{math.ceil(100 * value - 1e-9) / 100:g}"
    if flag == "time":
        return f"{math.ceil(value)}s" if value < 90 else f"{math.ceil(value / 60)}min"
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if value >= size:
            return f"{math.ceil(100 * value / size) / 100:g}{unit}"
    return f"{math.ceil(value / 10) / 100:g}kB"


def _spare(advice: Advice) -> list[str]:
    if not advice.spare:
        return []
    first, *others = advice.spare
    offers = [f"{first.variant.name} ({first.flops:.2f} FLOPs)"]
    offers += [f"{one.variant.name} ({one.flops:.2f})" for one in others]
    return [f"Room for: {' or '.join([', '.join(offers[:-1]), offers[-1]] if others else offers)}."]


def _tried(advice: Advice) -> list[str]:
    """What a trial says for the recommendation, and what it does not."""
    trial = advice.trial
    if trial is None:
        return []
    unit, last = unit_of(trial.metric), trial.rounds[-1]
    scores = []
    for tried in last.tried:
        score = "failed" if tried.score is None else f"{unit.tell(tried.score)} {unit.name}"
        apart = "" if tried.from_first is None else f", {difference_text(tried.from_first, unit)}"
        level = tried.from_first is not None and tried.from_first.holds_zero
        scores.append(f"{tried.name} {score}{apart}{', no significant difference' if level else ''}")
    return [
        f"Tried {len(trial.order)} on {trial.samples} held-back rows, one seed, {trial.spent:.2f} FLOPs "
        f"({time_told(trial.seconds)}).",
        f"After {100 * last.share:.3g}% of each training: {'; '.join(scores)}.",
    ]


def followed_words(followed: Followed) -> list[str]:
    """What came of the demo's advice."""
    unit, result = unit_of(next(iter(followed.result.metrics))), followed.result
    if result.score is None or followed.all_layers is None:
        return []
    apart = difference_text(followed.from_all, unit)
    said = f"Now it has been: {unit.tell(result.score)} {unit.name}, from all layers {apart}"
    if result.train_seconds and followed.all_layers.train_seconds:
        said += f", in {result.train_seconds / followed.all_layers.train_seconds:.2f} of the seconds"
    return [f"{said}. The brackets are its 95% interval over {result.samples} test rows, with one seed."]


def advised_recipe(advice: Advice) -> dict[str, Any]:
    """The recommendation as a recipe: its layers beside the base model, with every setting of the training written."""
    recipe = advice.to_recipe()
    sections = {name: _changed(getattr(recipe, name)) for name in ("model", "data", "evaluate")}
    sections["data"]["max_length"] = recipe.data.max_length
    kept = {name: values for name, values in sections.items() if values}
    train = json_values(recipe.train)
    return {
        **kept,
        "train": train,
        "output": recipe.output,
        "variants": [*recipe.variants, BASE],
        "seed": recipe.seed,
    }


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
        "schema_version": 2,
        **made_by(),
        "model": advice.recipe.model.name,
        "data": advice.recipe.data.data,
        "task": advice.situation.task,
        "limits": json_values(advice.limits),
        "samples": advice.samples,
        "num_layers": advice.num_layers,
        "base_bytes": advice.base_bytes,
        "flops_a_second": advice.flops_a_second,
        "estimated_on": _estimated_on(advice),
        "remedies": [{"flag": one.flag, "fits": one.fits, "memory": one.memory.to_json()} for one in advice.remedies],
        "tried_on_these_data": advice.trial is not None,
        "trial": json_values(advice.trial),
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


def costs(advice: Advice) -> Any:
    """What every candidate takes of FLOPs and of memory, in the order in which they are advised."""
    alt = altair()
    chosen = advice.recommended
    rows = [
        {
            "name": one.variant.name,
            "flops": one.flops,
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
    flops = base.encode(x=alt.X("flops:Q", title="FLOPs, by those of all layers"), y=names)
    memory = base.encode(
        x=alt.X("memory:Q", title="peak memory, GB"),
        y=alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labels=False, ticks=False)),
    )
    return flops | memory


def front(advice: Advice, trial: Trial) -> Any:
    """What each way scored, a panel a round, those whose whole training costs least first; in orange what nothing beats
    on both. Lines: the 95% interval of the difference from the round's first."""
    alt = altair()
    unit = unit_of(trial.metric)
    cost = {one.variant.name: one.flops for one in advice.priced}
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
                    "flops": cost[tried.name],
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
            sort=alt.EncodingSortField("flops"),
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
