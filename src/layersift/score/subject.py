"""What criteria look at: a probe, and everything that passes over it have read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from layersift.measures import Measure
from layersift.represent.read import Representations
from layersift.score.gradients import Gradients
from layersift.score.passes import Passes
from layersift.score.prepared import Prepared, prepare
from layersift.score.probe import Probe


@dataclass(frozen=True)
class Subject(Probe):
    """A probe with what passes over it have read, seen through all of its samples or some."""

    samples: torch.Tensor | None = None  # rows looked at; None: all
    passes: Passes = field(default_factory=Passes, repr=False)

    @property
    def num_samples(self) -> int:
        """How many samples are looked at."""
        return len(self.examples) if self.samples is None else len(self.samples)

    def of(self, samples: torch.Tensor) -> Subject:
        """The same subject seen through some of its samples, of what has been read already."""
        return replace(self, samples=samples)

    def only(self, samples: np.ndarray) -> Subject:
        """A subject that has no other samples than these, of what has been read already."""
        rows = torch.from_numpy(samples)
        return replace(self, examples=tuple(self.examples[i] for i in samples), passes=self.passes.only(rows))

    def representations(self, position: str | None = None) -> Representations:
        """R_0 ... R_M at a position, or the default one."""
        whole = self.passes.representations(self, position or self.position)
        return whole if self.samples is None else whole.of(self.samples)

    def prepared(self, measure: Measure, position: str | None = None) -> Prepared:
        """The representations as a measure prepares them; of part of the sample from the whole where it can."""
        if self.samples is None:
            return self.passes.prepared(self, measure, position or self.position)
        if measure.subset is None:
            return prepare(self.representations(position), measure)
        return self.passes.prepared(self, measure, position or self.position).of(measure, self.samples)

    def gradients(self) -> Gradients:
        """Gradients of each sample's loss, by module."""
        whole = self.passes.gradients(self)
        return whole if self.samples is None else whole.of(self.samples)
