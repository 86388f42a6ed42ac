"""How layers are chosen, and how many."""

from __future__ import annotations

import math
from dataclasses import dataclass

from layersift.errors import SelectionError, unknown_name
from layersift.represent.positions import get_position
from layersift.score.subject import PROBE_STEPS
from layersift.score.table import find_criterion
from layersift.select.afford import parse_objective
from layersift.select.budget import parameter_count
from layersift.select.selection import Compat

DEFAULT_RATIO = 0.5


MAX_SAMPLES = 128


FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class SelectSettings:
    """How layers are chosen: by ``ratio``, ``top_n``, ``budget_params``, ``threshold`` or ``objective``; else half."""

    ratio: float | None = None
    top_n: int | None = None
    position: str | None = None  # None: by the kind of task
    criterion: str = "cka"  # see `layersift.score.table`
    max_samples: int = MAX_SAMPLES
    seed: int = 0
    tower: str | None = None
    compat: Compat | None = None
    budget_params: str | int | None = None  # trained parameters: 2000000, or 2M
    threshold: float | None = None  # every layer that scores beyond it
    probe_steps: int = PROBE_STEPS  # optimizer steps for criteria that train
    objective: str | None = None  # time=SHARE or memory=SHARE: the most important layers within it of all layers' cost
    until_stable: float | None = None  # stop reading samples once the selection is decided with this confidence

    def __post_init__(self) -> None:
        limits = (self.ratio, self.top_n, self.budget_params, self.threshold, self.objective)
        if sum(given is not None for given in limits) > 1:
            raise SelectionError("give one of ratio, top-n, budget-params, threshold and objective")
        if self.objective is not None:
            parse_objective(self.objective)
        if self.budget_params is not None:
            parameter_count(self.budget_params)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise SelectionError(f"ratio {self.ratio} is out of range; it must be above 0 and at most 1")
        if self.top_n is not None and self.top_n < 1:
            raise SelectionError(f"top-n {self.top_n} is out of range; it must be at least 1")
        if self.max_samples < FEWEST_SAMPLES:
            raise SelectionError(f"max-samples {self.max_samples} is too few; at least {FEWEST_SAMPLES} are needed")
        self._check_compat()
        if self.probe_steps < 1:
            raise SelectionError(f"probe-steps {self.probe_steps} is out of range; it must be at least 1")
        if self.until_stable is not None and not 0.5 < self.until_stable < 1:
            raise SelectionError(f"until-stable {self.until_stable} is out of range; above 0.5 and below 1 is possible")
        find_criterion(self.criterion)
        if self.position is not None:
            get_position(self.position)

    def _check_compat(self) -> None:
        if self.compat not in (None, "paper"):
            raise unknown_name("compatibility", str(self.compat), ["paper"])
        if self.compat and self.position:
            raise SelectionError("--compat paper fixes the token position; leave --position away")
        if self.compat and self.until_stable is not None:
            raise SelectionError("--compat paper reads the published samples, all of them; leave --until-stable away")


def how_many(settings: SelectSettings, num_layers: int) -> int | None:
    """N: ``top_n``, or floor(ratio x M); None where it depends on the scores, or on what the layers cost.

    Raises:
        SelectionError: it would be none of the layers, or more than there are.
    """
    if any(given is not None for given in (settings.budget_params, settings.threshold, settings.objective)):
        return None
    if settings.top_n is not None:
        if settings.top_n > num_layers:
            raise SelectionError(f"top-n {settings.top_n} is more than the {num_layers} layers there are")
        return settings.top_n
    ratio = DEFAULT_RATIO if settings.ratio is None else settings.ratio
    count = math.floor(ratio * num_layers + 1e-9)  # 0.29 x 100 is 28.999... in floating point
    if count == 0:
        raise SelectionError(f"ratio {ratio} of {num_layers} layers is less than one layer")
    return count
