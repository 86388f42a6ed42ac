"""What criteria are asked about: one stack of blocks of a model, and a sample of the task's data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layersift.config.recipe import TaskKind
from layersift.config.select import SelectSettings
from layersift.data.examples import Example
from layersift.errors import DataError
from layersift.models.stacks import BlockStack, is_encoder_decoder

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class ProbeBatch:
    """One stack of blocks of a model, and a sample of the task's data."""

    model: Any
    stack: BlockStack
    examples: tuple[Example, ...]
    kind: TaskKind
    position: str = "mean"  # where criteria read that name no position
    pad_id: int = 0
    seed: int = 0
    count: int = 1  # N: how many layers are going to be chosen
    adapter: PeftConfig | None = None  # whose target modules short trainings adapt; None: PEFT's default
    probe_steps: int = SelectSettings.probe_steps  # optimizer steps that a criterion may train for, in all
    post_norm_last: bool = False  # read R_M behind the final norm, as the published scripts do
    progress: Callable[[int], None] | None = None

    @property
    def num_layers(self) -> int:
        """M."""
        return self.stack.num_layers

    @property
    def seq2seq(self) -> bool:
        """Whether an encoder reads and a decoder writes."""
        return is_encoder_decoder(self.model)


def require_labels(members: Sequence[Example], kind: TaskKind) -> None:
    """Refuse samples that no loss can be taken of.

    Raises:
        DataError: one of them has no label, or no response.
    """
    written = kind in ("instruction", "text")
    if any((e.response is None and e.target is None) if written else e.label is None for e in members):
        raise DataError("gradients need labels, and these samples have none; choose a criterion of forward passes")


@dataclass(frozen=True)
class Undefined:
    """In the place of a layer's score: why there is none.

    Args:
        why: the reason, in a few words.

    Examples:
        >>> from layersift import Undefined
        >>> score = Undefined("all samples have the same state")
        >>> score.why
        'all samples have the same state'
    """

    why: str


def is_number(value: float | Undefined) -> bool:
    """Whether there is a score."""
    return not isinstance(value, Undefined) and math.isfinite(value)
