"""What criteria look at: a probe batch with the activations read of it, each pass run once; and how much each layer
changes the representation, 1 - similarity(R_i, R_{i+1}).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from layersift.errors import SelectionError
from layersift.measures import Measure, TokenMeasure
from layersift.represent.positions import get_position
from layersift.represent.read import Batching, Representations, represent
from layersift.score.gradients import Gradients, read_gradients
from layersift.score.probe import ProbeBatch, Undefined

CONSTANT = "constant over the sample"


def why_undefined(state: torch.Tensor, dtype: torch.dtype) -> str | None:
    """Why a representation (n, d) cannot be compared, or None where it can.

    A dimension varies if its values spread further than the model's own rounding could make equal values spread
    (four units in the last place of ``dtype``). A representation in which no dimension varies is the same vector
    for every sample: the embedding of [CLS] entering an encoder, the newline that ends every prompt.
    """
    bad = int((~torch.isfinite(state)).any(dim=1).sum())
    if bad:
        return f"NaN or infinity in {bad} of {len(state)} samples"
    spread = state.amax(dim=0) - state.amin(dim=0)
    rounding = 4 * torch.finfo(dtype).eps * state.abs().amax(dim=0)
    if not bool((spread > rounding).any()):
        return CONSTANT
    return None


def top_dimension_share(state: torch.Tensor) -> float | None:
    """Share of the variance of ``state`` (n, d) that its largest dimension holds; None where nothing varies."""
    variance = state.double().var(dim=0)
    total = float(variance.sum())
    return float(variance.max()) / total if math.isfinite(total) and total > 0 else None


@dataclass(frozen=True)
class Prepared:
    """Representations ready for comparison by a measure, each prepared once, with reasons where one is not."""

    forms: tuple[Any, ...]  # R_0 ... R_M as the measure prepares them
    reasons: tuple[str | None, ...]
    alike: tuple[torch.Tensor, ...]  # of each representation, which samples (n,) are its most frequent vector
    num_samples: int

    def of(self, measure: Measure, samples: torch.Tensor) -> Prepared:
        """Those of some of the samples."""
        assert measure.subset is not None
        alike = tuple(same[samples] for same in self.alike)
        reasons = tuple(
            why or (CONSTANT if bool(same.all()) else None) for why, same in zip(self.reasons, alike, strict=True)
        )
        forms = tuple(None if why else measure.subset(f, samples) for f, why in zip(self.forms, reasons, strict=True))
        return Prepared(forms, reasons, alike, len(samples))


def prepare(representations: Representations, measure: Measure) -> Prepared:
    """Representations as a measure prepares them."""
    states, dtype = representations.states, representations.dtype
    reasons = tuple(why_undefined(state, dtype) for state in states)
    forms = tuple(None if why else measure.prepare(s.double()) for s, why in zip(states, reasons, strict=True))
    return Prepared(forms, reasons, tuple(_alike(state, dtype) for state in states), len(states[0]))


def _alike(state: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Which samples (n,) of a state (n, d) are one and the same vector, up to the model's rounding.

    Only a vector that more than half of the samples share can be all that a half of them has; it is the median.
    """
    middle = state.median(dim=0).values
    rounding = 4 * torch.finfo(dtype).eps * state.abs().amax(dim=0)
    return ((state - middle).abs() <= rounding).all(dim=1)


def importances(
    prepared: Prepared, measure: Measure, constant_importance: float | None = None
) -> list[float | Undefined]:
    """1 - similarity of every layer's input and output.

    Args:
        constant_importance: what a layer gets whose input or output is constant over the sample. Undefined, unless
            the published rule is wanted, which scores it 1.

    Raises:
        SelectionError: fewer samples than the measure needs.
    """
    if prepared.num_samples < measure.min_samples:
        raise SelectionError(f"{measure.name} needs at least {measure.min_samples} samples, got {prepared.num_samples}")
    scores: list[float | Undefined] = []
    for layer in range(len(prepared.forms) - 1):
        why = "; ".join(
            f"its {side} is {reason}" if reason == CONSTANT else f"its {side} has {reason}"
            for side, reason in (("input", prepared.reasons[layer]), ("output", prepared.reasons[layer + 1]))
            if reason
        )
        value = math.nan if why else 1 - measure.compare(prepared.forms[layer], prepared.forms[layer + 1])
        if constant_importance is not None and CONSTANT in why and "NaN" not in why:
            scores.append(constant_importance)
        else:
            scores.append(value if math.isfinite(value) else Undefined(why or f"{measure.name} is not a number here"))
    return scores


@dataclass
class Activations:
    """The passes over one probe; shared by a context and its subsets, and written by this class alone."""

    forward_seconds: float = 0.0
    gradient_seconds: float = 0.0
    _positions: list[str] = field(default_factory=list)
    _measures: list[TokenMeasure] = field(default_factory=list)
    _representations: dict[str, Representations] = field(default_factory=dict)
    _prepared: dict[tuple[str, str], Prepared] = field(default_factory=dict)  # by measure and position
    _gradients: Gradients | None = None

    @classmethod
    def holding(cls, representations: Mapping[str, Representations]) -> Activations:
        """Activations that have read these representations already, by position."""
        return cls(_representations=dict(representations))

    def announce(self, positions: Iterable[str], measures: Iterable[TokenMeasure]) -> None:
        """Say what is going to be asked for, so that one pass reads all of it."""
        self._positions += [name for name in positions if name not in self._positions]
        self._measures += [m for m in measures if m not in self._measures]

    def representations(self, probe: ProbeBatch, position: str) -> Representations:
        """R_0 ... R_M at a position; read with all announced positions in one forward pass."""
        if not self._has_read(position):
            names = dict.fromkeys([position, *self._positions])
            missing = [get_position(name) for name in names if not self._has_read(name)]
            states = represent(
                probe.model,
                probe.stack,
                probe.examples,
                missing,
                measures=self._measures,
                batching=Batching(probe.pad_id),
                post_norm_last=probe.post_norm_last,
                progress=probe.progress,
            )
            self._representations |= states
            self._prepared = {}
            self.forward_seconds += states[position].seconds
        return self._representations[position]

    def _has_read(self, position: str) -> bool:
        read = self._representations.get(position)
        return read is not None and all(m.name in read.between for m in self._measures)

    def prepared(self, probe: ProbeBatch, measure: Measure, position: str) -> Prepared:
        """The representations at a position as a measure prepares them."""
        states = self.representations(probe, position)
        key = (measure.name, position)
        if key not in self._prepared:
            self._prepared[key] = prepare(states, measure)
        return self._prepared[key]

    def gradients(self, probe: ProbeBatch) -> Gradients:
        """Gradients of each sample's loss, by module; from one backward pass."""
        if self._gradients is None:
            started = time.perf_counter()
            self._gradients = read_gradients(probe)
            self.gradient_seconds = time.perf_counter() - started
        return self._gradients

    def only(self, rows: torch.Tensor) -> Activations:
        """What has been read of some of the samples."""
        read = {name: states.of(rows) for name, states in self._representations.items()}
        gradients = None if self._gradients is None else self._gradients.of(rows)
        return Activations(_representations=read, _gradients=gradients)

    def joined(self, other: Activations) -> Activations:
        """What has been read of two samples, as if they were one."""
        gradients = None
        if self._gradients is not None and other._gradients is not None:
            gradients = self._gradients.joined(other._gradients)
        read = self._representations.items()
        return Activations(
            self.forward_seconds + other.forward_seconds,
            self.gradient_seconds + other.gradient_seconds,
            self._positions,
            self._measures,
            {name: states.joined(other._representations[name]) for name, states in read},
            _gradients=gradients,
        )


@dataclass(frozen=True)
class ScoringContext(ProbeBatch):
    """What a criterion is asked about: model, sample, and what passes over the sample have read.

    :func:`select_layers` makes one and gives it to the criterion; each pass runs once, whoever asks for it.

    Args:
        model: the model that is scored.
        stack: its blocks, M of them.
        examples: the sample, as the model reads it.
        kind: ``classification``, ``regression``, ``instruction`` or ``text``.
        position: where criteria read that name no position.
        pad_id: token that fills up shorter samples.
        seed: of what a criterion draws.
        count: N, how many layers are going to be chosen.
        adapter: the PEFT config whose target modules short trainings adapt; None: PEFT's default.
        probe_steps: optimizer steps that a criterion may train for, in all.
        post_norm_last: read R_M behind the final norm, as the published scripts do.
        progress: called with the number of samples after each batch.
        samples: rows that are looked at; None: all.
        activations: what has been read so far; criteria share it.

    Examples:
        >>> import json
        >>> from layersift import select_layers
        >>> from transformers import AutoModel, AutoTokenizer
        >>> def growth(context):
        ...     states = context.representations().states
        ...     return [float(after.norm() / before.norm()) for before, after in zip(states, states[1:])]
        ...
        >>> model, tokenizer = AutoModel.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
        >>> rows = [json.loads(line) for line in open("rows.jsonl")]
        >>> print(select_layers(model, rows, tokenizer, criterion=growth))
        1100  (top 2 of 4; growth, 24 samples)
    """

    samples: torch.Tensor | None = None
    activations: Activations = field(default_factory=Activations, repr=False)

    @property
    def num_samples(self) -> int:
        """How many samples are looked at."""
        return len(self.examples) if self.samples is None else len(self.samples)

    def of(self, samples: torch.Tensor) -> ScoringContext:
        """The same context seen through some of its samples, of what has been read already."""
        return replace(self, samples=samples)

    def only(self, samples: np.ndarray) -> ScoringContext:
        """A context that has no other samples than these, of what has been read already."""
        rows = torch.from_numpy(samples)
        return replace(self, examples=tuple(self.examples[i] for i in samples), activations=self.activations.only(rows))

    def representations(self, position: str | None = None) -> Representations:
        """R_0 ... R_M at a position, or the default one."""
        whole = self.activations.representations(self, position or self.position)
        return whole if self.samples is None else whole.of(self.samples)

    def prepared(self, measure: Measure, position: str | None = None) -> Prepared:
        """The representations as a measure prepares them; of part of the sample from the whole where it can."""
        if self.samples is None:
            return self.activations.prepared(self, measure, position or self.position)
        if measure.subset is None:
            return prepare(self.representations(position), measure)
        return self.activations.prepared(self, measure, position or self.position).of(measure, self.samples)

    def gradients(self) -> Gradients:
        """Gradients of each sample's loss, by module."""
        whole = self.activations.gradients(self)
        return whole if self.samples is None else whole.of(self.samples)
