"""How layers are chosen, and how many."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from layersift.config.fields import Checked, Seed
from layersift.config.quantities import parameter_count, parse_objective
from layersift.errors import SelectionError, unknown_name

BOTTOM = "bottom:"  # before a criterion's name: its ranking from the end


def rule_file(name: str) -> Path | None:
    """The file of a user's own rule, ``rules.py:my_rule``; None where the name is of another kind."""
    path, colon, _ = name.removeprefix(BOTTOM).rpartition(":")
    return Path(path) if colon and path.endswith(".py") else None


def rule_digest(name: str) -> str | None:
    """SHA-256 of the file of a user's own rule, so that an edited one is another; None where the name is no rule's."""
    path = rule_file(name)
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


Compat = Literal["paper"]
DEFAULT_RATIO = 0.5
FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class SelectSettings(Checked):
    """How layers are chosen: by ``ratio``, ``top_n``, ``budget_params``, ``threshold`` or ``objective``; else half.

    The names of criterion and position are looked up where they are used; see `layersift.select.choose`.

    Examples:
        >>> from layersift import SelectSettings
        >>> settings = SelectSettings(top_n=2, criterion="fisher")
        >>> settings.criterion, settings.top_n, settings.max_samples
        ('fisher', 2, 128)
    """

    ratio: (
        Annotated[float, Meta(gt=0, le=1, description="Share of the layers to select, rounded down. [0.5]")] | None
    ) = None
    top_n: Annotated[int, Meta(ge=1, le=10**5, description="Number of layers to select.")] | None = None
    budget_params: Annotated[
        str | int | None, Meta(description="As many layers as so many trained parameters allow: 2M, 800k, ...")
    ] = None
    position: Annotated[
        str | None,
        Meta(
            description="first, last, last-content, last-prompt, mean or response-mean: which tokens stand for a "
            "sample. [by the kind of task]"
        ),
    ] = None
    criterion: Annotated[
        str,
        Meta(description="What ranks the layers, see `layersift criteria`: cka, fisher, cka@last, rules.py:mine."),
    ] = "cka"
    threshold: (
        Annotated[
            float, Meta(ge=-1e300, le=1e300, description="Instead of a number of layers, those that score beyond it.")
        ]
        | None
    ) = None
    objective: Annotated[
        str | None,
        Meta(description="time=0.6 or memory=0.5: the most important layers within that share of all layers' cost."),
    ] = None
    modules: Annotated[
        bool,
        Meta(
            description="Choose modules and their ranks, not whole layers, by the energy of their gradients, within "
            "budget-params, objective or both."
        ),
    ] = False
    probe_steps: Annotated[
        int, Meta(ge=1, le=10**6, description="Optimizer steps that criteria may take which train (lora-drop, pilot).")
    ] = 60
    until_stable: (
        Annotated[
            float,
            Meta(
                gt=0.5,
                lt=1,
                description="Stop reading samples once the selection is decided with this confidence, such as 0.95.",
            ),
        ]
        | None
    ) = None
    max_samples: Annotated[int, Meta(ge=FEWEST_SAMPLES, le=10**9, description="Samples to read, drawn at random.")] = (
        128
    )
    tower: Annotated[
        str | None,
        Meta(description="encoder, decoder, language or vision, of several; encoder+decoder: both in one ranking."),
    ] = None
    compat: Annotated[Compat | None, Meta(description="paper: exactly the published scripts' selection.")] = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.compat not in (None, "paper"):
            raise unknown_name("compatibility", str(self.compat), ["paper"])
        super().__post_init__()
        if self.modules:
            self._check_modules()
        elif sum(given is not None for given in self.limits) > 1:
            raise SelectionError("give one of ratio, top-n, budget-params, threshold and objective")
        if self.tower is not None and not re.fullmatch(r"\w+(\+\w+)?", self.tower):
            raise SelectionError(
                f"tower {self.tower!r}: a name such as decoder is needed, or two such as encoder+decoder"
            )
        if self.objective is not None:
            parse_objective(self.objective)
        if self.budget_params is not None:
            parameter_count(self.budget_params)
        if self.compat:
            self._check_compat()

    @property
    def limits(self) -> tuple[float | str | None, ...]:
        """What says how many layers are selected; nothing of it is given where it is half of them."""
        return (self.ratio, self.top_n, self.budget_params, self.threshold, self.objective)

    def _check_modules(self) -> None:
        """Modules are chosen by one rule, within a budget: no setting is ignored."""
        others = {
            "ratio": self.ratio,
            "top-n": self.top_n,
            "threshold": self.threshold,
            "criterion": self.criterion if self.criterion != SelectSettings.criterion else None,
            "position": self.position,
            "until-stable": self.until_stable,
            "compat": self.compat,
        }
        if given := [f"--{name}" for name, value in others.items() if value is not None]:
            raise SelectionError(f"--modules chooses by the energy of gradients; leave {', '.join(given)} away")
        if self.budget_params is None and self.objective is None:
            raise SelectionError("--modules needs --budget-params, --objective or both")

    def _check_compat(self) -> None:
        """The published scripts have one criterion, one position and a number of layers: no setting is ignored."""
        fixed = {
            "position": self.position,
            "criterion": self.criterion if self.criterion != SelectSettings.criterion else None,
            "threshold": self.threshold,
            "objective": self.objective,
            "until-stable": self.until_stable,
        }
        given = [f"--{name}" for name, value in fixed.items() if value is not None]
        if given:
            raise SelectionError(
                f"--compat paper makes exactly the published selection, which has no {', '.join(given)}; leave "
                f"{'it' if len(given) == 1 else 'them'} away"
            )


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
