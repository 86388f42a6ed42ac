"""What would be advised within other limits of memory and time: what the sliders of advice.html show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from layersift.advise.candidates import ALL, HALF, SHORTER, Priced, Prices, Situation, shorten
from layersift.advise.trial import Trial
from layersift.config.limits import Limits
from layersift.config.train import TrainSettings
from layersift.experiment.costs import ways_to_run
from layersift.records.runs import Variant

POSITIONS = 60  # of the slider of memory
STEP = 0.05  # of the slider of time
TRIES = 4  # to find the length that keeps to a time: an epoch costs less once the frozen prefix is kept


@dataclass(frozen=True)
class Option:
    """A variant in the ways that it may be run; the first whose memory suffices is taken."""

    kind: str
    ways: tuple[Priced, ...]  # they miss only limits of parameters or disk

    @property
    def allowed(self) -> bool:
        """Whether it keeps to the limits that no slider moves."""
        return self.ways[0].fits


@dataclass(frozen=True)
class OtherLimits:
    """Every variant in every way; of those within a memory and a time, the first is advised."""

    options: tuple[Option, ...]
    shorter: Mapping[float, tuple[Option, ...]]  # fewer epochs, by the time allowed; they come last
    memories: tuple[float, ...]  # bytes, ascending: positions of a slider
    shares: tuple[float, ...]  # of all layers' FLOPs, likewise
    memory: float | None  # the position that was asked for
    share: float | None


def weigh_other_limits(
    prices: Prices,
    situation: Situation,
    variants: Sequence[Variant],
    priced: Sequence[Priced],
    limits: Limits,
    pace: float,
    trial: Trial | None,
) -> OtherLimits:
    """Price the variants as they were asked for, in the smallest batches and checkpointed.

    Batches between these are measured for the given limits alone, since each size takes a fraction of a second.

    Args:
        variants: in their order, as asked for.
        priced: the same as they are run within ``limits``, and those with fewer epochs.
    """
    fixed = replace(limits, memory=None, device_name=None, time=None)
    order = [] if trial is None else trial.order
    within = {one.variant.name: one.variant.train for one in priced}
    tried = [one.variant for one in priced if one.variant.kind == SHORTER and one.variant.name in order]
    ordered = sorted(
        [*variants, *tried],
        key=lambda v: (order.index(v.name) if v.name in order else len(order), situation.place(v.kind)),
    )
    options = tuple(
        Option(
            v.kind,
            tuple(
                prices.of(replace(v, train=s), fixed, pace)
                for s in _ways(v.train, within[v.name], prices.devices.count)
            ),
        )
        for v in ordered
    )
    share = prices.share_allowed(limits, pace)
    memories = [way.memory.needed for option in options for way in option.ways]
    shares = _evenly(max(way.flops for option in options for way in option.ways), share)
    # As long as one of them fits for all of its epochs, fewer epochs are not advised.
    enough = min((o.ways[-1].flops for o in options if o.allowed and o.kind != SHORTER), default=0.0)
    shorter = {
        one: tuple(
            Option(SHORTER, ways)
            for option in sorted(options, key=lambda o: o.kind != HALF)
            if option.kind in (HALF, ALL) and option.allowed
            if (ways := _shorter(one, option, prices, situation, fixed, pace)) != option.ways
            if not any(way.variant.name in order for way in ways if way.variant.kind == SHORTER)
        )
        for one in shares
        if one < enough or one == share
    }
    return OtherLimits(
        options,
        shorter,
        _ascending(min(memories), max(memories), limits.memory_bytes),
        shares,
        limits.memory_bytes,
        share,
    )


def _ways(asked: TrainSettings, within: TrainSettings, devices: int) -> list[TrainSettings]:
    """As asked for, as it is run within the limits, with batches of one and with checkpointing: in their order."""
    chains = ways_to_run(asked, devices)
    chosen = (asked, within, *(chain[-1] for chain in chains))
    return [one for chain in chains for one in chain if one in chosen]


def _shorter(
    share: float, option: Option, prices: Prices, situation: Situation, limits: Limits, pace: float
) -> tuple[Priced, ...]:
    """The ways of an option; those that take more than the share with fewer epochs, where that leaves a step."""
    return tuple(
        (shorten_to(share, one, prices, situation, limits, pace) if one.flops > share else None) or one
        for one in option.ways
    )


def shorten_to(
    share: float, one: Priced, prices: Prices, situation: Situation, limits: Limits, pace: float
) -> Priced | None:
    """A variant for as many steps as a fraction of all layers' FLOPs allows; None where that is not one."""
    fraction = share / one.flops
    for _ in range(TRIES):
        variant = shorten(situation, one.variant, fraction, len(prices.examples))
        if variant is None:
            return None
        cost = prices.of(variant, limits, pace)
        if cost.flops <= share:
            return cost
        fraction *= 0.99 * share / cost.flops
    return None


def _evenly(most: float, given: float | None) -> tuple[float, ...]:
    positions = {round(STEP * place, 4) for place in range(1, int(most / STEP) + 2)}
    return tuple(sorted(positions | ({given} if given else set())))


def _ascending(least: float, most: float, given: float | None) -> tuple[float, ...]:
    """From a little below the least to the most, each by the same factor, in three digits."""
    positions = {float(f"{value:.3g}") for value in np.geomspace(0.95 * least, 1.01 * most, POSITIONS).tolist()}
    return tuple(sorted(positions | ({float(given)} if given else set())))
