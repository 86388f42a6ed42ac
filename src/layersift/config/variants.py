"""What a run and a comparison train: the variants as they are written, and the grid of choices."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from layersift.config.fields import Checked
from layersift.config.quantities import FORMS, is_layer_text, parse_layers
from layersift.config.train import current_strategy, parse_strategy
from layersift.errors import LayersiftError, SelectionError, unknown_name

SELECTED, BASE, FIRST = "selected", "base", "first"
BASELINES = ("all", "random", FIRST, "last")
_TOP = re.compile(r"top-([1-9][0-9]*)")
_DRAW = re.compile(r"random-[01]+")  # a draw's run directory
_NAMED = re.compile(r"(?P<name>[a-z][a-z0-9-]*)=(?P<layers>.+)")
_MASK = re.compile(r"(?=[01]{2})[01]*1[01]*")


@dataclass(frozen=True)
class NamedVariant:
    """One way of choosing the layers to train."""

    name: str  # ``published`` for ``published=0110``, otherwise the variant as it is written
    top: int | None = None  # so many of the ranking
    mask: str | None = None  # a digit a layer, 1 where it is trained; of NAME=LAYERS once their number is known


def parse_variant(text: str, num_layers: int | None = None) -> NamedVariant:
    """The variant that is written so.

    Raises:
        LayersiftError: none of the known forms; the message lists them. Or, where ``num_layers`` is given, a mask of
            another length, or a layer or an N beyond it.
    """
    plain = (SELECTED, BASE, *BASELINES)
    named, top = _NAMED.fullmatch(text), _TOP.fullmatch(text)
    if named:
        return _named_variant(text, named["name"], named["layers"], num_layers)
    if text not in plain and not top:
        raise unknown_name("variant", text, (*plain, "top-N", "NAME=MASK", "NAME=LAYERS"))
    if num_layers is not None and top and int(top[1]) > num_layers:
        raise SelectionError(f"variant {text!r}: there are {num_layers} layers")
    return NamedVariant(text, top=int(top[1]) if top else None)


def _named_variant(text: str, name: str, layers: str, num_layers: int | None) -> NamedVariant:
    """The variant of NAME=MASK or NAME=LAYERS; more than one digit, each of them 0 or 1, is a mask."""
    if name in (SELECTED, BASE, *BASELINES) or _TOP.fullmatch(name) or _DRAW.fullmatch(name):
        raise SelectionError(f"variant {text!r}: {name!r} has a meaning already; give the layers another name")
    if _MASK.fullmatch(layers):
        if num_layers is not None and len(layers) != num_layers:
            raise SelectionError(
                f"variant {text!r}: the mask has {len(layers)} digits, but there are {num_layers} layers; a layer by "
                f"its index is written {layers}-{layers}"
            )
        return NamedVariant(name, mask=layers)
    if not is_layer_text(layers):
        raise SelectionError(f"variant {text!r}: {layers!r} is neither a mask such as 0110 nor layers such as {FORMS}")
    if num_layers is None:
        return NamedVariant(name)
    chosen = parse_layers(layers, num_layers, f"variant {name}:")
    return NamedVariant(name, mask="".join("01"[layer in chosen] for layer in range(num_layers)))


def sweep_variants(num_layers: int, sizes: str | None = None) -> tuple[str, ...]:
    """The variants of a sweep, ascending: the given sizes, or the powers of two, half of the layers and all of them.

    Raises:
        SelectionError: something else than numbers from 1 to ``num_layers``, separated by commas.
    """
    if sizes is None:
        powers = {2**i for i in range(num_layers.bit_length()) if 2**i < num_layers}
        wanted = powers | {max(1, num_layers // 2), num_layers}
    else:
        parts = [part.strip() for part in sizes.split(",")]
        if not all(part.isdecimal() and 1 <= int(part) <= num_layers for part in parts):
            raise SelectionError(f"--sizes {sizes}: expected numbers from 1 to {num_layers}, separated by commas")
        wanted = {int(part) for part in parts}
    return tuple("all" if n == num_layers else f"top-{n}" for n in sorted(wanted))


DEFAULT_CRITERIA = (
    "cka",
    "cka-robust",
    "cosine",
    "ls-lora",
    "fisher",
    "gradient-norm",
    "spectrum",
    "lora-drop",
    "first",
    "last",
    "middle",
    "alternate",
    "first-and-last",
    "bottom:cka",
)


FEWEST = 3  # seeds, for a verdict


@dataclass(frozen=True)
class CompareSettings(Checked):
    """Which choices of layers are trained, and how often.

    Examples:
        >>> from layersift import CompareSettings
        >>> settings = CompareSettings(criteria=["cka", "last"], seeds=5)
        >>> settings.criteria, settings.seeds, settings.random
        (['cka', 'last'], 5, 5)
    """

    criteria: Annotated[list[str], Meta(description="Names from `layersift criteria`.")] = field(
        default_factory=lambda: list(DEFAULT_CRITERIA)
    )
    sizes: Annotated[list[Annotated[int, Meta(ge=1)]], Meta(description="Numbers of layers; none: half of them.")] = (
        field(default_factory=list)
    )
    seeds: Annotated[int, Meta(ge=1, le=1000, description="Seeds of training, counted up from the recipe's.")] = 3
    methods: Annotated[list[str], Meta(description="Adapter methods; none: the recipe's.")] = field(
        default_factory=list
    )
    strategies: Annotated[
        list[str],
        Meta(
            description="Strategies of training all layers (docs/strategies.md), compared with choices; skipping: for "
            "what criteria choose."
        ),
    ] = field(default_factory=lambda: ["freezing"])
    budgets: Annotated[
        list[Annotated[float, Meta(gt=0, le=10)]],
        Meta(
            description="Fractions of the FLOPs that all layers take, for which all layers, the last ones and the "
            "strategies are trained, however many epochs that is; none: the last layers' own, and 1."
        ),
    ] = field(default_factory=list)
    random: Annotated[int, Meta(ge=1, le=1000, description="Random subsets of each size.")] = 5
    learning_rates: Annotated[
        list[Annotated[float, Meta(gt=0, lt=10)]],
        Meta(
            description="Of which one is chosen, on rows held back from training, and further ones where the best is "
            "the lowest or highest; none: the recipe's."
        ),
    ] = field(default_factory=list)
    tune: Annotated[
        Literal["size", "each"],
        Meta(description="Whether a rate is chosen for each number of layers, with random ones, or for each row."),
    ] = "size"
    retention: Annotated[
        str | None, Meta(description="Text of another kind, on which the loss is taken before and after.")
    ] = None
    race: Annotated[
        bool,
        Meta(
            description="Train no further seeds of a row whose verdict against all layers and random ones is settled: "
            "at most one in twenty would have changed it."
        ),
    ] = False
    probe_share: Annotated[
        float, Meta(gt=0, le=1, description="Of the steps of a training, what criteria may take that train.")
    ] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "learning_rates", [float(rate) for rate in self.learning_rates])
        object.__setattr__(self, "budgets", [float(share) for share in self.budgets])
        object.__setattr__(self, "strategies", [current_strategy(strategy) for strategy in self.strategies])
        if self.race and self.seeds <= FEWEST:
            raise LayersiftError(
                f"compare.race stops rows after {FEWEST} seeds at the earliest, and compare.seeds is {self.seeds}; "
                "give more seeds, or leave race away"
            )
        for strategy in self.strategies:
            parse_strategy(strategy)
        for key in ("criteria", "sizes", "methods", "strategies", "budgets", "learning_rates"):
            values = getattr(self, key)
            if twice := sorted({str(value) for value in values if values.count(value) > 1}):
                raise LayersiftError(f"compare.{key}: {', '.join(twice)}: each can be named once")


@dataclass(frozen=True)
class Smoke(Checked):
    """What stands in for the model when a recipe is only to be tried out; see `layersift.experiment.smoke`."""

    # Of transformers: the class is the real one, the size is tiny.
    model_type: Annotated[str, Meta(description="The kind of model, by transformers' name.")]
    classes: Annotated[int, Meta(ge=2, description="Classes, of a classification task.")] = 2
