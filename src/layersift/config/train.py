"""How adapters are trained, how a training is watched, and the shape of adapters for other trainers."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from layersift.config.fields import Checked
from layersift.errors import LayersiftError, SelectionError, unknown_name

STATIC, FREEZING, CONVERGING, SKIPPING = "static", "freezing", "converging", "skipping"
FORMER_NAMES = {"rising": FREEZING, "settling": CONVERGING, "dropping": SKIPPING}  # in files of older versions
FORMS = (
    "static",
    "freezing",
    "freezing:LAYER@SHARE,...",
    "converging",
    "converging:CKA@SHARE",
    "rotating:N@STEPS",
    "skipping:SHARE",
)
CONVERGED, LOOK_EVERY = 0.99, 1 / 16  # CKA with the look before, from which on a layer has converged; how often
TOP_SHARE, RISEN = 2 / 3, 0.5  # of the layers, how many plain freezing leaves; and in which share of the training
ROUNDING = 1e-9  # of a step
_CUT = re.compile(r"([0-9]{1,5})@(0(?:\.[0-9]+)?)")
_ROTATING = re.compile(r"rotating:([1-9][0-9]{0,4})@([1-9][0-9]{0,8})")
_CONVERGING = re.compile(r"converging:(0\.[0-9]+)@(0\.[0-9]+)")
_SKIPPING = re.compile(r"skipping:(0\.[0-9]+|1|1\.0)")


@dataclass(frozen=True)
class Strategy:
    """Which of the adapted layers are trained at which step, and how far back their gradients are taken.

    Rotating layers are LISA (arXiv 2403.17919), skipping is DropBP (arXiv 2402.17812).

    Args:
        name: ``static``, ``freezing``, ``converging``, ``rotating`` or ``skipping``.
        cuts: freezing: the lowest layer trained, and the fraction of the steps from which on.
        size: rotating: so many layers at a time.
        every: rotating: for so many steps.
        share: skipping: the fraction of the steps in which a block without adapters skips its backward pass.
        converged: converging: the CKA with the previous check from which on a layer has converged, 0 to 1.
        look_every: converging: a check after each such fraction of the steps.

    Examples:
        >>> from layersift import parse_strategy
        >>> freezing = parse_strategy("freezing:1@0.25,2@0.5")
        >>> [freezing.trained([0, 1, 2, 3], 4, step, 100) for step in (0, 25, 50)]
        [(0, 1, 2, 3), (1, 2, 3), (2, 3)]
    """

    name: str = STATIC
    cuts: tuple[tuple[int, float], ...] = ()
    size: int = 0
    every: int = 0
    share: float = 0.0
    converged: float = 0.0
    look_every: float = 0.0

    def trained(self, adapted: Sequence[int], num_layers: int, step: int, steps: int, seed: int = 0) -> tuple[int, ...]:
        """The layers that are trained at a step (counted from 0) of so many, of those that carry adapters.

        With strategy converging those that may be: which of them are is seen while training.
        """
        if self.name == FREEZING:
            lowest = max(
                (cut for cut, share in self._cuts(num_layers) if step >= math.ceil(share * steps - ROUNDING)), default=0
            )
            return tuple(i for i in adapted if i >= lowest)
        if self.name == "rotating":
            drawn = random.Random(f"{seed} {step // self.every}").sample(list(adapted), self.size)
            return tuple(sorted(drawn))
        return tuple(adapted)

    def heaviest(self, adapted: Sequence[int]) -> tuple[int, ...]:
        """The layers that are trained at the step that takes the most memory: no draw takes more than the lowest
        ones, and freezing begins with all of them."""
        return tuple(adapted)[: self.size or None]

    def looks(self, steps: int) -> list[int]:
        """The steps before which strategy converging looks at the layers, of so many."""
        if self.name != CONVERGING:
            return []
        at = (
            math.ceil(number * self.look_every * steps - ROUNDING) for number in range(1, int(1 / self.look_every) + 1)
        )
        return sorted({step for step in at if step < steps})

    def _cuts(self, num_layers: int) -> tuple[tuple[int, float], ...]:
        if self.cuts:
            return self.cuts
        top = min(round(TOP_SHARE * num_layers), num_layers - 1)
        return tuple((cut, RISEN * cut / top) for cut in range(1, top + 1))

    def require_layers(self, adapted: Sequence[int], num_layers: int) -> None:
        """Refuse layers that the strategy cannot be followed on.

        Raises:
            SelectionError: none would be trained in the end, or there are fewer than are to be drawn.
        """
        if self.name == FREEZING and not self.trained(adapted, num_layers, 1, 1):
            cut = max(cut for cut, _ in self._cuts(num_layers))
            raise SelectionError(
                f"strategy freezing: the cut ends below layer {cut}, and no layer from there on carries an adapter"
            )
        if self.name == "rotating" and self.size > len(adapted):
            raise SelectionError(
                f"strategy rotating: {self.size} layers at a time, but only {len(adapted)} carry adapters"
            )

    @property
    def keeps_prefix(self) -> bool:
        """Whether what has been frozen below the first trained block stays as it is."""
        return self.name != "rotating"

    @property
    def freezes(self) -> bool:
        """Whether what is frozen is never trained again."""
        return self.name in (FREEZING, CONVERGING)


def current_strategy(text: str) -> str:
    """A strategy by today's name, where an older version wrote it."""
    name, colon, rest = text.partition(":")
    return FORMER_NAMES.get(name, name) + colon + rest


def parse_strategy(text: str) -> Strategy:
    """The strategy that is written so.

    Args:
        text: ``static``, ``freezing``, ``freezing:LAYER@SHARE,...``, ``converging``, ``converging:CKA@SHARE``,
            ``rotating:N@STEPS`` or ``skipping:SHARE``; see docs/strategies.md for their papers.

    Returns:
        The strategy.

    Raises:
        LayersiftError: none of the known forms; the message lists them.

    Examples:
        >>> from layersift import parse_strategy
        >>> strategy = parse_strategy("rotating:2@50")
        >>> strategy.name, strategy.size, strategy.every
        ('rotating', 2, 50)
    """
    text = current_strategy(text)
    if text in (STATIC, FREEZING):
        return Strategy(text)
    if text == CONVERGING:
        return Strategy(text, converged=CONVERGED, look_every=LOOK_EVERY)
    if match := _CONVERGING.fullmatch(text):
        if not 0.001 <= float(match[2]) <= 0.5:
            raise LayersiftError(f"strategy {text!r}: it looks 2 to 1,000 times; a share of 0.001 to 0.5 is needed")
        return Strategy(CONVERGING, converged=float(match[1]), look_every=float(match[2]))
    if match := _ROTATING.fullmatch(text):
        return Strategy("rotating", size=int(match[1]), every=int(match[2]))
    if match := _SKIPPING.fullmatch(text):
        return Strategy(SKIPPING, share=float(match[1]))
    name, _, rest = text.partition(":")
    cuts = [_CUT.fullmatch(part.strip()) for part in rest.split(",")]
    if name != FREEZING or not all(cuts):
        raise LayersiftError(
            f"strategy {text!r} is unknown; {', '.join(FORMS)} are possible, as in freezing:1@0.125,2@0.25 (layers "
            "below 1 are frozen after an eighth of the steps, below 2 after a quarter)"
        )
    pairs = tuple((int(cut[1]), float(cut[2])) for cut in cuts if cut)
    ascending = [list(values) == sorted(set(values)) for values in zip(*pairs, strict=True)]
    if not all(ascending):
        raise LayersiftError(f"strategy {text!r}: layers and shares of the training have to ascend")
    return Strategy(FREEZING, pairs)


# Of transformers' schedules, those that need no settings of their own.
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
AUTO: Literal["auto"] = "auto"  # the learning rate is found: :mod:`layersift.experiment.rates`
FULL = "full"  # the method without an adapter: the blocks themselves are trained


@dataclass(frozen=True)
class TrainSettings(Checked):
    """How adapters are trained; what is None is filled in by :func:`layersift.config.defaults.with_defaults`.

    The method's name is looked up where it is used: :func:`layersift.adapt.methods.find_method`.

    Examples:
        >>> from layersift import TrainSettings
        >>> settings = TrainSettings(epochs=3, rank=4)
        >>> settings.batch_size, settings.steps(samples=1000)
        (16, 189)
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
            Meta(
                gt=0,
                lt=10,
                description="Peak rate; auto: found by short trainings. [by the task, the model's width and the layers "
                "trained]",
            ),
        ]
        | Literal["auto"]
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
    ] = field(default_factory=dict, hash=False)
    rank: Annotated[int, Meta(ge=1, le=10**5, description="Rank of the adapters, where the method has one.")] = 8
    ranks: Annotated[
        dict[str | int, int],
        Meta(
            description="WHAT=rank: of attention, mlp, a module's name, or a layer's index.",
            extra={"flag": "--rank-of"},
        ),
    ] = field(default_factory=dict, hash=False)
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
    loraplus_ratio: (
        Annotated[
            float,
            Meta(ge=1, le=1000, description="LoRA+: B is trained at so many times the learning rate, which is A's."),
        ]
        | None
    ) = None
    layer_decay: (
        Annotated[
            float,
            Meta(gt=0, lt=1, description="Each layer's rate is that of the layer above it times this. [one rate]"),
        ]
        | None
    ) = None
    gradient_checkpointing: Annotated[bool, Meta(description="Less memory, more time.")] = False
    precision: Annotated[str | None, Meta(description="bf16 or fp16: automatic mixed precision.")] = None
    activation_cache: Annotated[
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
    shared_prompt: Annotated[
        bool,
        Meta(
            description="Compute what all rows begin with once in those blocks, not once a row; the same to rounding. "
            "Plans do not count it."
        ),
    ] = False

    strategy: Annotated[
        str,
        Meta(
            description="static, freezing, freezing:LAYER@SHARE,..., rotating:N@STEPS, skipping:SHARE, "
            "converging: docs/strategies.md."
        ),
    ] = STATIC

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "strategy", current_strategy(self.strategy))
        if parse_strategy(self.strategy).name != STATIC and self.method == "adalora":
            raise LayersiftError("adalora moves rank between all layers at every step; it is for strategy static alone")
        if self.method == FULL and (self.ranks or self.method_options):
            raise LayersiftError("method 'full' trains the blocks themselves; it has neither ranks nor options")
        for name in ("target_modules", "activation_cache", "method"):
            if getattr(self, name) == "":
                raise LayersiftError(f"{name.replace('_', '-')} is empty; leave it away for its default")
        if self.precision not in (None, "bf16", "fp16"):
            raise unknown_name("precision", str(self.precision), ["bf16", "fp16"])
        if self.scheduler not in SCHEDULERS:
            raise unknown_name("scheduler", self.scheduler, SCHEDULERS)

    @property
    def named_rate(self) -> float | None:
        """The learning rate, where one is named."""
        return None if self.learning_rate == AUTO else self.learning_rate

    @property
    def rate(self) -> float:
        """The learning rate, which is named by now: see :func:`layersift.config.defaults.with_defaults`."""
        assert self.named_rate is not None
        return self.named_rate

    @property
    def num_epochs(self) -> float:
        """The epochs, which are named by now: see :func:`layersift.config.defaults.fill_epochs`."""
        assert self.epochs is not None
        return self.epochs

    def steps(self, samples: int) -> int:
        """Optimizer steps for that many samples."""
        batches = math.ceil(samples / self.batch_size)
        return math.ceil(self.num_epochs * math.ceil(batches / self.gradient_accumulation))


TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


@dataclass(frozen=True)
class WatchSettings(Checked):
    """What is looked at and told of a training; its test data are not for this."""

    hold_back: (
        Annotated[
            float,
            Meta(
                gt=0,
                lt=1,
                description="Hold that fraction of the rows back: score the model on them while it trains, and judge "
                "the finished run on them.",
            ),
        ]
        | None
    ) = None
    eval_data: Annotated[
        str | None, Meta(description="Rows to score the model on, eight times while it trains; not the test rows.")
    ] = None
    eval_split: Annotated[str, Meta(description="Split of --eval-data.")] = "validation"
    patience: (
        Annotated[
            int,
            Meta(
                ge=1, le=8, description="Stop after so many looks without a better score, and keep the best adapters."
            ),
        ]
        | None
    ) = None
    report_to: Annotated[
        str | None, Meta(description="tensorboard, wandb, trackio, mlflow; several between commas.")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hold_back is not None and self.eval_data is not None:
            raise LayersiftError(
                "hold-back takes rows of the data to score the model on, eval-data names others; give one"
            )
        if self.patience is not None and self.eval_data is None and self.hold_back is None:
            raise LayersiftError("patience needs hold-back or eval-data, whose score it watches")
        for name in self.trackers:
            if name not in TRACKERS:
                raise unknown_name("tracker", name, TRACKERS)

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers."""
        return tuple(name.strip() for name in (self.report_to or "").split(",") if name.strip())


@dataclass(frozen=True)
class ExportSettings(Checked):
    """The adapters' shape for another trainer. What is None is as the trainer's own config has it, or as in `train`."""

    rank: Annotated[int, Meta(ge=1, le=10**5, description="LoRA rank. [--into's, or 8]")] | None = None
    ranks: Annotated[
        dict[str | int, int],
        Meta(
            description="WHAT=rank: of attention, mlp, a module's name, or a layer's index.",
            extra={"flag": "--rank-of"},
        ),
    ] = field(default_factory=dict)
    alpha: Annotated[float, Meta(gt=0, le=1e6, description="LoRA alpha. [--into's, or 16]")] | None = None
    dropout: Annotated[float, Meta(ge=0, lt=1, description="Dropout in the adapters. [--into's, or 0]")] | None = None
    target_modules: Annotated[
        str | None, Meta(description="all-linear, a regex, or names separated by commas. [PEFT's default]")
    ] = None
