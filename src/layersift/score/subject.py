"""What criteria look at: a model and a sample, and everything that passes over them have read, each pass run once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from layersift.errors import ModelError, SelectionError
from layersift.load.blocks import BlockStack
from layersift.load.data import TaskKind
from layersift.load.examples import Example
from layersift.measures import TokenMeasure
from layersift.represent.by_block import lies_elsewhere
from layersift.represent.positions import get_position
from layersift.represent.read import Representations, represent
from layersift.score.base import Criterion, LayerScores, Undefined, is_number
from layersift.score.similarity import Prepared, top_dimension_share

if TYPE_CHECKING:
    from peft import PeftConfig

    from layersift.score.gradients import Gradients

PROBE_STEPS = 60


@dataclass
class _Passes:
    """What has been read, and how long it took; shared by a subject and its subsets."""

    positions: list[str] = field(default_factory=list)
    measures: list[TokenMeasure] = field(default_factory=list)
    representations: dict[str, Representations] = field(default_factory=dict)
    prepared: dict[tuple[str, str], Prepared] = field(default_factory=dict)  # by measure and position
    gradients: Gradients | None = None
    forward_seconds: float = 0.0
    gradient_seconds: float = 0.0

    def joined(self, other: _Passes) -> _Passes:
        """What has been read of two samples, as if they were one."""
        both = self.gradients is not None and other.gradients is not None
        return _Passes(
            self.positions,
            self.measures,
            {name: read.joined(other.representations[name]) for name, read in self.representations.items()},
            gradients=self.gradients.joined(other.gradients) if both else None,  # type: ignore[union-attr, arg-type]
            forward_seconds=self.forward_seconds + other.forward_seconds,
            gradient_seconds=self.gradient_seconds + other.gradient_seconds,
        )


@dataclass(frozen=True)
class Subject:
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
    probe_steps: int = PROBE_STEPS  # optimizer steps that a criterion may train for, in all
    post_norm_last: bool = False  # read R_M behind the final norm, as the published scripts do
    progress: Callable[[int], None] | None = None
    samples: torch.Tensor | None = None  # rows looked at; None: all
    passes: _Passes = field(default_factory=_Passes, repr=False)

    @property
    def num_layers(self) -> int:
        """M."""
        return self.stack.num_layers

    @property
    def seq2seq(self) -> bool:
        """Whether an encoder reads and a decoder writes."""
        return bool(getattr(getattr(self.model, "config", None), "is_encoder_decoder", False))

    def of(self, samples: torch.Tensor) -> Subject:
        """The same subject seen through some of its samples, of what has been read already."""
        return replace(self, samples=samples)

    def plan(self, criteria: Iterable[Criterion]) -> None:
        """Say which criteria are going to look, so that one pass reads for all of them."""
        for criterion in criteria:
            if criterion.reads_states:
                self.passes.positions.append(criterion.position or self.position)
            self.passes.measures += [m for m in criterion.measures if m not in self.passes.measures]

    def representations(self, position: str | None = None) -> Representations:
        """R_0 ... R_M at a position, or the default one; read with all planned positions in one forward pass."""
        wanted = position or self.position
        passes = self.passes
        if not self._has_read(wanted):
            names = dict.fromkeys([wanted, *passes.positions])
            missing = [get_position(name) for name in names if not self._has_read(name)]
            found = represent(
                self.model,
                self.stack,
                self.examples,
                missing,
                measures=passes.measures,
                pad_id=self.pad_id,
                post_norm_last=self.post_norm_last,
                progress=self.progress,
            )
            passes.representations |= found
            passes.forward_seconds += found[wanted].seconds
        whole = passes.representations[wanted]
        return whole if self.samples is None else whole.of(self.samples)

    def _has_read(self, position: str) -> bool:
        read = self.passes.representations.get(position)
        return read is not None and all(m.name in read.between for m in self.passes.measures)

    def gradients(self) -> Gradients:
        """Gradients of each sample's loss, by module; from one backward pass."""
        from layersift.score.gradients import read_gradients

        if self.passes.gradients is None:
            started = time.perf_counter()
            self.passes.gradients = read_gradients(self)
            self.passes.gradient_seconds = time.perf_counter() - started
        whole = self.passes.gradients
        return whole if self.samples is None else whole.of(self.samples)


def score_layers(criterion: Criterion, subject: Subject) -> LayerScores:
    """The scores of every layer by a criterion.

    ``seconds`` are those of the criterion as if it had been asked alone: its own, and the pass that it shares.

    Raises:
        SelectionError: the criterion returned something else than a number or nothing for each layer.
    """
    if criterion.needs in ("gradients", "weights", "training") and _is_offloaded(subject):
        raise ModelError(f"{criterion.name} needs the model in memory; its blocks are loaded only while they run")
    subject.plan([criterion])
    passes, seconds = subject.passes, 0.0
    shares: tuple[float | None, ...] = (None,) * subject.num_layers
    if criterion.needs == "forward" and criterion.reads_states:
        states = replace(subject, samples=None).representations(criterion.position).states
        if subject.samples is None:
            shares = tuple(top_dimension_share(state) for state in states[1:])
        seconds = passes.forward_seconds
    elif criterion.needs == "gradients" and criterion.by_sample:
        subject.gradients()
        seconds = passes.gradient_seconds
    started = time.perf_counter()
    values = list(criterion.score(subject))
    seconds += time.perf_counter() - started
    if len(values) != subject.num_layers:
        raise SelectionError(f"{criterion.name} gave {len(values)} scores for {subject.num_layers} layers")
    return LayerScores(
        criterion=criterion.name,
        importance=tuple(float(v) if is_number(v) else None for v in values),  # type: ignore[arg-type]
        undefined={
            layer: value.why if isinstance(value, Undefined) else f"{criterion.name} is not a number here"
            for layer, value in enumerate(values)
            if not is_number(value)
        },
        top_dimension_share=shares,
        num_samples=len(subject.examples) if subject.samples is None else len(subject.samples),
        seconds=seconds,
        direction=criterion.direction,
    )


def _is_offloaded(subject: Subject) -> bool:
    return any(map(lies_elsewhere, subject.stack.blocks(subject.model)))
