"""`layersift advise`: what to train within a memory, a time, a number of parameters or a size on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from layersift.config.advise import Limits
from layersift.config.recipe import Recipe
from layersift.errors import LayersiftError
from layersift.experiment.candidates import KINDS, candidates_of
from layersift.experiment.prepare import Prepared
from layersift.experiment.prices import Priced, Prices
from layersift.experiment.trial import Trial, hold_trial, kept_pace
from layersift.progress import Reporter


@dataclass(frozen=True)
class Advice:
    """What to train, what else might be, and what it takes."""

    recipe: Recipe
    limits: Limits
    num_layers: int
    base_bytes: int
    samples: int
    priced: tuple[Priced, ...]  # in the order in which they are advised, those that fit first
    operations_a_second: float
    helps: tuple[str, ...] = ()  # where nothing fits, what would
    trial: Trial | None = None

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
        mask = self.recommended.candidate.mask(self.num_layers)
        arm = "all" if "0" not in mask else f"advised={mask}"
        return replace(self.recipe, train=self.recommended.candidate.settings, arms=(arm,))

    @property
    def next_best(self) -> tuple[Priced, ...]:
        """Two others that fit, of other kinds."""
        found: dict[str, Priced] = {}
        for one in self.priced[1:]:
            if one.fits and one.candidate.kind != self.priced[0].candidate.kind:
                found.setdefault(one.candidate.kind, one)
        return tuple(found.values())[:2]


def advise(
    recipe: Recipe,
    prepared: Prepared,
    limits: Limits,
    reporter: Reporter | None = None,
    *,
    trial: float | None = None,
    place: Path | None = None,
) -> Advice:
    """Price every candidate by the plan, with the time of a few real steps here, and order those that fit.

    Args:
        trial: the share of what training all layers takes that may be spent on trying those that fit.
        place: where the trial's trainings are kept, so that it can be gone on with.

    Raises:
        LayersiftError: the model cannot be planned or loaded; or the trial is too short.
    """
    reporter = reporter or Reporter()
    prices = Prices(recipe, prepared)
    pace = kept_pace(place) if trial is not None and place is not None else None  # so that the same ways fit
    pace = pace or prices.measured_pace(reporter)
    candidates = candidates_of(prices.model, prices.stack, recipe.train)
    found = []
    with reporter.stage("planning", len(candidates), "ways of training") as progress:
        for candidate in candidates:
            found.append(prices.of(candidate, limits, pace))
            progress(1)
    allowed = limits.share if limits.seconds is None else limits.seconds * pace / prices.whole.flops
    if allowed is not None and found[0].operations > allowed:
        shorter = prices.shorter(found[0].candidate, allowed / found[0].operations)
        found += [prices.of(shorter, limits, pace)] if shorter else []
    found.sort(key=lambda one: (not one.fits, KINDS.index(one.candidate.kind)))  # of one kind the order stays
    fitting, held = [one.candidate for one in found if one.fits], None
    if trial is not None and place is not None and len(fitting) > 1:
        own = replace(recipe, output=str(place))
        held = hold_trial(own, fitting, trial, prices, pace, reporter)
        known = held.order
        found.sort(key=lambda one: known.index(one.candidate.name) if one.candidate.name in known else len(known))
    helps = () if found[0].fits else tuple(prices.what_would_help(found, limits))
    layers = prices.stack.num_layers
    return Advice(recipe, limits, layers, prices.base, len(prices.examples), tuple(found), pace, helps, held)
