"""How adapters are trained."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layersift.adapt.methods import FULL, make_config
from layersift.errors import LayersiftError, unknown_name
from layersift.load.data import TaskKind

if TYPE_CHECKING:
    from peft import PeftConfig

# Of transformers' schedules, those that need no settings of their own.
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass(frozen=True)
class TrainSettings:
    """Adapters on the selected layers. The rates are those common for each kind of task, not tuned on any test data."""

    max_samples: int | None = None  # None: all
    epochs: float = 3.0
    learning_rate: float | None = None  # None: 5e-4 with a classification head, 2e-4 for text
    batch_size: int = 16
    gradient_accumulation: int = 1
    method: str = "lora"  # see `layersift.adapt.methods`
    method_options: dict[str, Any] = field(default_factory=dict)  # further fields of its PEFT config
    rank: int = 8
    ranks: dict[str | int, int] = field(default_factory=dict)  # of some modules; see `layersift.adapt.ranks`
    alpha: float = 16
    dropout: float = 0.0
    target_modules: str | None = None  # None: PEFT's default; "all-linear", a regex, or names separated by commas
    scheduler: str = "linear"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    gradient_checkpointing: bool = False
    precision: str | None = None  # bf16 or fp16: automatic mixed precision, where the hardware has it
    prefix_cache: str = (
        "auto"  # what the frozen prefix gives is kept in memory ("auto"), not ("off"), or in a directory
    )
    prefix_dropout: bool = True  # False: the frozen prefix draws no dropout, so that it can be kept

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation", "rank", "alpha"):
            if not getattr(self, name) > 0:
                raise LayersiftError(
                    f"{name.replace('_', '-')} {getattr(self, name)} is out of range; above 0 is needed"
                )
        if self.max_samples is not None and self.max_samples < 1:
            raise LayersiftError(f"max-samples {self.max_samples} is out of range; at least 1 is needed")
        if self.learning_rate is not None and not 0 < self.learning_rate < 10:
            raise LayersiftError(
                f"learning-rate {self.learning_rate} is out of range; above 0 and below 10 is possible"
            )
        if not 0 <= self.dropout < 1:
            raise LayersiftError(f"dropout {self.dropout} is out of range; from 0 to below 1 is possible")
        if not 0 <= self.warmup_ratio < 1:
            raise LayersiftError(f"warmup-ratio {self.warmup_ratio} is out of range; from 0 to below 1 is possible")
        if self.method == FULL and (self.ranks or self.method_options):
            raise LayersiftError("method 'full' trains the blocks themselves; it has neither ranks nor options")
        if self.precision not in (None, "bf16", "fp16"):
            raise unknown_name("precision", str(self.precision), ["bf16", "fp16"])
        if self.scheduler not in SCHEDULERS:
            raise unknown_name("scheduler", self.scheduler, SCHEDULERS)

    def rate(self, kind: TaskKind) -> float:
        """The learning rate for a kind of task."""
        return self.learning_rate or (2e-4 if kind in ("instruction", "text") else 5e-4)

    def steps(self, samples: int) -> int:
        """Optimizer steps for that many samples."""
        batches = math.ceil(samples / self.batch_size)
        return math.ceil(self.epochs * math.ceil(batches / self.gradient_accumulation))

    def adapter(self, kind: TaskKind, steps: int, seq2seq: bool = False) -> PeftConfig | None:
        """The PEFT config for a training of that many optimizer steps, None where the blocks themselves are trained.

        The layers are not its business.
        """
        if self.method == FULL:
            return None
        targets: Any = self.target_modules
        if targets and targets != "all-linear" and re.fullmatch(r"[\w.]+(,[\w.]+)*", targets):
            targets = targets.split(",")
        options = {"total_step": steps, **self.method_options} if self.method == "adalora" else self.method_options
        return make_config(
            self.method,
            rank=self.rank,
            alpha=int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,  # other readers expect int
            dropout=self.dropout,
            target_modules=targets,
            task_type=("SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM") if kind in ("instruction", "text") else "SEQ_CLS",
            options=options,
        )
