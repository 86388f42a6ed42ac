"""An advice in words, on one screen, and as a recipe that `layersift run` takes."""

from __future__ import annotations

import math
import textwrap
from dataclasses import fields
from typing import Any

import yaml

from layersift.adapt.methods import has_rank
from layersift.advise.adviser import Advice
from layersift.advise.candidates import FREEZING, SHORTER, Priced, freezes_prefix
from layersift.advise.demo import Followed
from layersift.config.fields import default_of, json_values
from layersift.config.train import FULL, TrainSettings
from layersift.config.variants import BASE
from layersift.plan.memory import Memory, in_one_unit, tell_bytes, unit_of_bytes
from layersift.progress import time_told
from layersift.records.runs import Variant
from layersift.report.tables import difference_text
from layersift.statistics.intervals import unit_of

WIDTH = 80
HEADER = ["training variant", "fits", "FLOPs", "time", "memory", "parameters"]


def advice_words(advice: Advice) -> list[str]:
    """Lines of at most 80 characters: what to train and how, its risk, a table beside two others, what is missed."""
    chosen = advice.recommended
    if chosen is None:
        return _wrapped([*(f"{missed[0].upper()}{missed[1:]}." for missed in advice.missed), *_remedies(advice)])
    untried = "; try it: --trial" if advice.trial is None else ""
    search = [] if advice.search is None else advice.search.described().split("\n")
    return [
        *_wrapped([*describe(advice, chosen.variant), *search, f"Risk: {risk_of(advice, chosen.variant)}{untried}."]),
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
        memory_range(one.memory),
        f"{one.parameters:,}",
    ]


def memory_range(memory: Memory) -> str:
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
    if advice.devices.count > 1:
        said += f", on each of {advice.devices.described()}"
        parts |= {"gathered blocks": of.gathered, "buckets": of.buckets}
    return [f"{said}: {', '.join(in_one_unit(parts))}."]


def _speed(advice: Advice) -> list[str]:
    """What the times of a device elsewhere are made of."""
    device, count = advice.limits.device, advice.devices.count
    each = [] if device is None else [device.described(advice.computed_in)]
    times = [f"{count} devices are taken to be {count} times as fast as one"] if count > 1 else []
    return [f"Times are estimates: {'; '.join([*each, *times])}."] if each or times else []


def _remedies(advice: Advice) -> list[str]:
    """What would fit, and what would not be enough alone."""
    said = []
    for fits, begun in ((True, "These would"), (False, "Not enough alone")):
        flags = [f"{one.flag} ({tell_bytes(one.memory.high)})" for one in advice.remedies if one.fits == fits]
        said += [f"{begun}: {', '.join(flags)}."] if flags else []
    return said


def describe(advice: Advice, variant: Variant) -> list[str]:
    """Three sentences: which layers are trained, by which adapters and rate, for how long."""
    return [_what(advice, variant), _adapters(variant.train), _length(advice, variant)]


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


def risk_of(advice: Advice, variant: Variant) -> str:
    """What is known of a variant's loss against all layers."""
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


def advised_recipe(advice: Advice, variant: Variant) -> dict[str, Any]:
    """A variant as a recipe: its layers beside the base model, with every setting of the training written."""
    recipe = advice.recipe_of(variant)
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


def recipe_text(advice: Advice, variant: Variant) -> str:
    """The same as YAML."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # a page has a hundred; libyaml takes a tenth of the time
    return str(yaml.dump(advised_recipe(advice, variant), Dumper=dumper, sort_keys=False, allow_unicode=True))


def _changed(settings: Any) -> dict[str, Any]:
    """What of some settings is not as it is by default."""
    return {
        f.name: json_values(value)
        for f in fields(settings)
        if (value := getattr(settings, f.name)) is not None and value != default_of(f)
    }
