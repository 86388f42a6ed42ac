"""How adapters are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from layersift.config.fields import Checked
from layersift.config.strategy import STATIC, parse_strategy
from layersift.errors import LayersiftError, unknown_name

# Of transformers' schedules, those that need no settings of their own.
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
FULL = "full"  # the method without an adapter: the blocks themselves are trained


@dataclass(frozen=True)
class TrainSettings(Checked):
    """How adapters are trained; what is None is filled in by :func:`layersift.config.defaults.with_defaults`.

    The method's name is looked up where it is used: :func:`layersift.adapt.methods.find_method`.
    """

    max_samples: (
        Annotated[int, Meta(ge=1, le=10**9, description="Train on that many samples, drawn at random. [all]")] | None
    ) = None
    epochs: (
        Annotated[
            float,
            Meta(gt=0, le=1e6, description="Passes over the data. [3; classification: up to 20, for 200 steps]"),
        ]
        | None
    ) = None
    learning_rate: (
        Annotated[
            float,
            Meta(gt=0, lt=10, description="Peak rate. [by the task, the model's width and the layers trained]"),
        ]
        | None
    ) = None
    batch_size: Annotated[int, Meta(ge=1, le=10**6, description="Samples a forward pass.")] = 16
    gradient_accumulation: Annotated[int, Meta(ge=1, le=10**6, description="Forward passes an optimizer step.")] = 1
    method: Annotated[str, Meta(description="lora, pissa, eva, dora, ..., a PEFT type, or full: docs/methods.md.")] = (
        "lora"
    )
    method_options: Annotated[
        dict[str, Any],
        Meta(
            description="key=value: a further field of the method's PEFT config.",
            extra={"flag": "--method-option"},
        ),
    ] = field(default_factory=dict)
    rank: Annotated[int, Meta(ge=1, le=10**5, description="Rank of the adapters, where the method has one.")] = 8
    ranks: Annotated[
        dict[str | int, int],
        Meta(
            description="WHAT=rank: of attention, mlp, a module's name, or a layer's index.",
            extra={"flag": "--rank-of"},
        ),
    ] = field(default_factory=dict)
    alpha: Annotated[
        float,
        Meta(
            gt=0, le=1e6, description="LoRA alpha; updates are scaled by alpha / rank, of rsLoRA by alpha / sqrt(rank)."
        ),
    ] = 16
    dropout: Annotated[float, Meta(ge=0, lt=1, description="Dropout in the adapters.")] = 0.0
    target_modules: Annotated[
        str | None,
        Meta(description="all-linear, a regex, or names between commas. [text: all-linear; else PEFT's default]"),
    ] = None
    scheduler: Annotated[str, Meta(description="Learning-rate schedule, by transformers' name.")] = "linear"
    warmup_ratio: Annotated[float, Meta(ge=0, lt=1, description="Share of the steps in which the rate rises.")] = 0.0
    weight_decay: Annotated[float, Meta(ge=0, le=1e3, description="AdamW's weight decay.")] = 0.0
    gradient_checkpointing: Annotated[bool, Meta(description="Less memory, more time.")] = False
    precision: Annotated[str | None, Meta(description="bf16 or fp16: automatic mixed precision.")] = None
    prefix_cache: Annotated[
        str,
        Meta(
            description="Keep what the frozen blocks below the first trained one give: in memory (auto), not (off), "
            "or in a directory, which later trainings share."
        ),
    ] = "auto"
    prefix_dropout: Annotated[
        bool,
        Meta(description="Draw dropout in those blocks, too; then nothing of them is kept.", extra={"negatable": True}),
    ] = False

    strategy: Annotated[
        str,
        Meta(
            description="static, rising, rising:LAYER@SHARE,..., rotating:N@STEPS, dropping:SHARE: docs/strategies.md."
        ),
    ] = STATIC

    def __post_init__(self) -> None:
        super().__post_init__()
        if parse_strategy(self.strategy).name != STATIC and self.method == "adalora":
            raise LayersiftError("adalora moves rank between all layers at every step; it is for strategy static alone")
        if self.method == FULL and (self.ranks or self.method_options):
            raise LayersiftError("method 'full' trains the blocks themselves; it has neither ranks nor options")
        for name in ("target_modules", "prefix_cache", "method"):
            if getattr(self, name) == "":
                raise LayersiftError(f"{name.replace('_', '-')} is empty; leave it away for its default")
        if self.precision not in (None, "bf16", "fp16"):
            raise unknown_name("precision", str(self.precision), ["bf16", "fp16"])
        if self.scheduler not in SCHEDULERS:
            raise unknown_name("scheduler", self.scheduler, SCHEDULERS)

    @property
    def num_epochs(self) -> float:
        """The epochs, which are named by now: see :func:`layersift.config.defaults.fill_epochs`."""
        assert self.epochs is not None
        return self.epochs

    def steps(self, samples: int) -> int:
        """Optimizer steps for that many samples."""
        batches = math.ceil(samples / self.batch_size)
        return math.ceil(self.num_epochs * math.ceil(batches / self.gradient_accumulation))
