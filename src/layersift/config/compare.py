"""The grid of trainings that `layersift compare` and `layersift oracle` fill."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from layersift.config.fields import Checked
from layersift.config.strategy import parse_strategy
from layersift.errors import LayersiftError

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


@dataclass(frozen=True)
class CompareSettings(Checked):
    """Which choices of layers are trained, and how often."""

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
            description="Ways of training all layers (docs/strategies.md) that are held against choices; dropping is a "
            "way of training what criteria choose."
        ),
    ] = field(default_factory=lambda: ["rising"])
    budgets: Annotated[
        list[Annotated[float, Meta(gt=0, le=10)]],
        Meta(
            description="Shares of the operations that all layers take, for which all layers, the last ones and the "
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
    probe_share: Annotated[
        float, Meta(gt=0, le=1, description="Of the steps of a training, what criteria may take that train.")
    ] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "learning_rates", [float(rate) for rate in self.learning_rates])
        object.__setattr__(self, "budgets", [float(share) for share in self.budgets])
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
