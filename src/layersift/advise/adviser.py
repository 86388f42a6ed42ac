"""`layersift advise`: what to train within a memory, a time, a number of parameters or a size on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from layersift.adapt.methods import name_targets
from layersift.advise.candidates import (
    ALL,
    HALF,
    SHORTER,
    Priced,
    Prices,
    Remedy,
    Situation,
    list_spare,
    list_variants,
)
from layersift.advise.other_limits import OtherLimits, shorten_to, weigh_other_limits
from layersift.advise.trial import Trial, hold_trial, kept_pace
from layersift.config.defaults import hidden_size
from layersift.config.limits import Devices, Limits, planned_on, trained_kind
from layersift.config.recipe import Recipe
from layersift.config.train import AUTO
from layersift.errors import LayersiftError
from layersift.experiment.cell import Jobs
from layersift.experiment.prepare import Prepared
from layersift.experiment.rates import search_rate
from layersift.progress import Reporter
from layersift.records.runs import RateSearch, Variant

NEAR = 1.5  # by how much a limit may be missed and yet be named


@dataclass(frozen=True)
class Advice:
    """What to train, what else might be, and what it takes."""

    recipe: Recipe  # its target modules by name
    limits: Limits
    devices: Devices  # that share the training
    situation: Situation
    base_bytes: int
    samples: int
    priced: tuple[Priced, ...]  # in the order in which they are advised, those that fit first
    flops_a_second: float  # of all devices; here, and of a device that is named an estimate
    computed_in: str  # the type of products on a GPU
    other_limits: OtherLimits
    missed: tuple[str, ...] = ()  # where nothing fits, by how much
    remedies: tuple[Remedy, ...] = ()  # and what would take less memory
    trial: Trial | None = None
    spare: tuple[Priced, ...] = ()  # more than is recommended that fits too, each alone
    search: RateSearch | None = None  # how the recommendation's rate was found, where the recipe says "auto"

    @property
    def num_layers(self) -> int:
        """Of the model."""
        return self.situation.num_layers

    @property
    def recommended(self) -> Priced | None:
        """The first that fits."""
        return self.priced[0] if self.priced and self.priced[0].fits else None

    def to_recipe(self) -> Recipe:
        """The recommendation alone, as a recipe.

        Raises:
            LayersiftError: nothing fits.
        """
        if self.recommended is None:
            raise LayersiftError("nothing fits, so that there is nothing to train")
        return self.recipe_of(self.recommended.variant)

    def recipe_of(self, variant: Variant) -> Recipe:
        """A variant alone, as a recipe."""
        name = "all" if "0" not in variant.mask else f"advised={variant.mask}"
        return replace(self.recipe, train=variant.train, variants=(name,))

    @property
    def alternatives(self) -> tuple[Priced, ...]:
        """All layers, to compare with, and the next one of another kind that fits: two at most beside the first."""
        others = [one for one in self.priced[1:] if one.variant.kind != self.priced[0].variant.kind]
        whole = [one for one in others if one.variant.kind == ALL]
        fitting = [one for one in others if one.fits and one not in whole]
        nearest = [one for one in others if not one.fits and one not in whole]
        return tuple([*whole, *fitting, *nearest][:2])

    @property
    def just_missed(self) -> tuple[Priced, dict[str, float]] | None:
        """The variant before the recommended one that misses the limits by the least, and what it needs of each one
        that it misses; None where that is more than half as much again."""
        if self.recommended is None:
            return None
        end = self.situation.place(self.recommended.variant.kind)
        better = [one for one in self.priced if not one.fits and self.situation.place(one.variant.kind) < end]
        missed = [(one, missing(one, self.limits)) for one in better]
        near = [(max(ratio for _, ratio in of.values()), one, of) for one, of in missed]
        if not near:
            return None
        ratio, nearest, of = min(near, key=lambda entry: entry[0])
        return None if ratio > NEAR else (nearest, {flag: needed for flag, (needed, _) in of.items()})


def missing(one: Priced, limits: Limits) -> dict[str, tuple[float, float]]:
    """Of each limit that a variant exceeds, by flag: what it needs, and that by what is allowed."""
    taken: dict[str, tuple[float, float | None]] = {
        "memory": (one.memory.needed, limits.memory_bytes),
        "time": (one.flops, limits.share) if limits.seconds is None else (one.seconds, limits.seconds),
        "params": (one.parameters, limits.parameters),
        "adapter-size": (one.adapter_bytes, limits.adapter_bytes),
    }
    over = {flag: (needed, most) for flag, (needed, most) in taken.items() if most is not None and needed > most}
    return {flag: (needed, needed / most) for flag, (needed, most) in over.items()}


def advise(
    recipe: Recipe,
    prepared: Prepared,
    limits: Limits,
    reporter: Reporter | None = None,
    *,
    trial: float | None = None,
    place: Path | None = None,
    jobs: Jobs = 1,
    devices: Devices = Devices(),  # noqa: B008
) -> Advice:
    """Price every variant by the plan, with the time of a few real steps here, and order those that fit.

    Args:
        trial: the fraction of what training all layers takes that may be spent on trying those that fit.
        place: where the trial's trainings are kept, so that it can be gone on with.
        jobs: what carries the trial's trainings out.
        devices: that are to share each batch; n of them are taken to be n times as fast as one.

    Raises:
        LayersiftError: the devices cannot share the training; the model cannot be planned or loaded; the trial is
            too short.
    """
    reporter = reporter or Reporter()
    devices.require(recipe.train.batch_size, recipe.model.quantization)
    if devices.count > 1 and recipe.train.method == "adalora":
        raise LayersiftError("adalora trains in one process; leave --devices away, or take another method")
    prices = Prices(replace(recipe, model=planned_on(recipe.model, limits.device)), prepared, devices)
    recipe = _with_named_modules(recipe, prepared, prices)
    kind, rate = prepared.encoder.kind, recipe.train.named_rate
    situation = Situation(kind, hidden_size(prices.model.config), prices.stack.num_layers, rate)
    width, quantized = next(prices.model.parameters()).element_size(), recipe.model.quantization is not None
    computed_in = trained_kind(recipe.train.precision, width, quantized)
    own = kept_pace(place) if trial is not None and place is not None else None  # so that the same variants fit
    if own is None and (trial is not None or limits.device is None):
        own = prices.measured_pace(reporter)
    of_one = own if limits.device is None else limits.device.pace(computed_in)
    assert of_one is not None
    pace = of_one * devices.count
    variants = list_variants(situation, recipe.train, limits)
    priced = []
    with reporter.stage("planning", len(variants), "training variants") as progress:
        for variant in variants:
            priced.append(prices.of(variant, limits, pace))
            progress(1)
    priced += _shorter(situation, prices, priced, limits, pace)
    priced.sort(key=lambda one: (not one.fits, situation.place(one.variant.kind)))  # of one kind the order stays
    fitting, held = [one.variant for one in priced if one.fits], None
    if trial is not None and place is not None and len(fitting) > 1:
        kept = replace(recipe, output=str(place))
        held = hold_trial(kept, fitting, trial, prices, own or of_one, reporter, jobs)
        known = held.order
        priced.sort(key=lambda one: known.index(one.variant.name) if one.variant.name in known else len(known))
    search = None
    if recipe.train.learning_rate == AUTO and priced[0].fits:
        first = priced[0].variant
        search = search_rate(prepared.task, first, reporter, recipe.seed)
        tuned = replace(first, train=replace(first.train, learning_rate=search.chosen))
        priced[0] = replace(priced[0], variant=tuned)
    return Advice(
        recipe=recipe,
        limits=limits,
        devices=devices,
        situation=situation,
        base_bytes=prices.base,
        samples=len(prices.examples),
        priced=tuple(priced),
        flops_a_second=pace,
        computed_in=computed_in,
        other_limits=weigh_other_limits(prices, situation, variants, priced, limits, pace, held),
        missed=() if priced[0].fits else tuple(prices.what_is_missed(priced, limits)),
        remedies=() if priced[0].fits else tuple(prices.remedies(priced, limits)),
        trial=held,
        spare=tuple(_spare(situation, prices, priced[0], limits, pace)),
        search=search,
    )


def _with_named_modules(recipe: Recipe, prepared: Prepared, prices: Prices) -> Recipe:
    """The recipe with PEFT's default modules by their names, where it gives none."""
    if recipe.train.target_modules is not None:
        return recipe
    config = prepared.task.adapter(recipe.train)
    named = name_targets(prices.model, prices.stack, config)
    return replace(recipe, train=replace(recipe.train, target_modules=named))


def _shorter(situation: Situation, prices: Prices, priced: list[Priced], limits: Limits, pace: float) -> list[Priced]:
    """The last half and all layers for as many steps as the time allows, where it does not allow all of them."""
    allowed = prices.share_allowed(limits, pace)
    shorter = []
    for one in priced:
        if allowed is None or one.variant.kind not in (HALF, ALL) or one.flops <= allowed:
            continue
        cost = shorten_to(allowed, one, prices, situation, limits, pace)
        shorter += [] if cost is None else [cost]
    return shorter[::-1]  # the last half before all layers


def _spare(situation: Situation, prices: Prices, chosen: Priced, limits: Limits, pace: float) -> list[Priced]:
    """The most of each kind that fits beside the recommendation: more modules, more rank, more epochs."""
    limited = (limits.memory_bytes, limits.time, limits.params, limits.adapter_size) != (None,) * 4
    if not limited or not chosen.fits or chosen.variant.kind == SHORTER:
        return []
    spare = []
    for what, offers in list_spare(situation, chosen.variant).items():
        if what == "epochs" and limits.time is None:
            continue  # nobody said how long it may take
        for offer in offers:
            cost = prices.of(offer, limits, pace)
            if what == "modules" and cost.parameters == chosen.parameters:
                break  # every linear layer is adapted already
            if cost.fits:
                spare.append(cost)
                break
    return spare
