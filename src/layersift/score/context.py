"""What criteria look at: a probe batch with all that passes over it have read, each pass run once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from layersift.measures import Measure, TokenMeasure
from layersift.represent.positions import get_position
from layersift.represent.read import Batching, Representations, represent
from layersift.score.gradients import Gradients, read_gradients
from layersift.score.prepared import Prepared, prepare
from layersift.score.probe import ProbeBatch


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
    """A probe with what passes over it have read, seen through all of its samples or some."""

    samples: torch.Tensor | None = None  # rows looked at; None: all
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
