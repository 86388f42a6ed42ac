"""What passes over a sample have read, each pass run once, whoever asks for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from layersift.measures import Measure, TokenMeasure
from layersift.represent.positions import get_position
from layersift.represent.read import Batching, Representations, represent
from layersift.score.gradients import Gradients, read_gradients
from layersift.score.prepared import Prepared, prepare
from layersift.score.probe import Probe


@dataclass
class Passes:
    """The passes over one probe; shared by a subject and its subsets, and written by this class alone."""

    forward_seconds: float = 0.0
    gradient_seconds: float = 0.0
    _positions: list[str] = field(default_factory=list)
    _measures: list[TokenMeasure] = field(default_factory=list)
    _representations: dict[str, Representations] = field(default_factory=dict)
    _prepared: dict[tuple[str, str], Prepared] = field(default_factory=dict)  # by measure and position
    _gradients: Gradients | None = None

    @classmethod
    def holding(cls, representations: Mapping[str, Representations]) -> Passes:
        """Passes that have read these representations already, by position."""
        return cls(_representations=dict(representations))

    def announce(self, positions: Iterable[str], measures: Iterable[TokenMeasure]) -> None:
        """Say what is going to be asked for, so that one pass reads all of it."""
        self._positions += [name for name in positions if name not in self._positions]
        self._measures += [m for m in measures if m not in self._measures]

    def representations(self, probe: Probe, position: str) -> Representations:
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

    def prepared(self, probe: Probe, measure: Measure, position: str) -> Prepared:
        """The representations at a position as a measure prepares them."""
        states = self.representations(probe, position)
        key = (measure.name, position)
        if key not in self._prepared:
            self._prepared[key] = prepare(states, measure)
        return self._prepared[key]

    def gradients(self, probe: Probe) -> Gradients:
        """Gradients of each sample's loss, by module; from one backward pass."""
        if self._gradients is None:
            started = time.perf_counter()
            self._gradients = read_gradients(probe)
            self.gradient_seconds = time.perf_counter() - started
        return self._gradients

    def only(self, rows: torch.Tensor) -> Passes:
        """What has been read of some of the samples."""
        read = {name: states.of(rows) for name, states in self._representations.items()}
        gradients = None if self._gradients is None else self._gradients.of(rows)
        return Passes(_representations=read, _gradients=gradients)

    def joined(self, other: Passes) -> Passes:
        """What has been read of two samples, as if they were one."""
        gradients = None
        if self._gradients is not None and other._gradients is not None:
            gradients = self._gradients.joined(other._gradients)
        read = self._representations.items()
        return Passes(
            self.forward_seconds + other.forward_seconds,
            self.gradient_seconds + other.gradient_seconds,
            self._positions,
            self._measures,
            {name: states.joined(other._representations[name]) for name, states in read},
            _gradients=gradients,
        )
