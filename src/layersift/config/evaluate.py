"""What trainings are judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from layersift.config.fields import Checked


@dataclass(frozen=True)
class EvaluateSettings(Checked):
    """What the arms of a run, or the choices of a comparison, are judged on."""

    # One source, or several by name, each with its split behind an @; None: a fifth of the training data is held back
    # by the seed.
    data: Annotated[
        str | dict[str, str] | None, Meta(description="Test data; else a fifth of the training rows is held back.")
    ] = None
    split: Annotated[str, Meta(description="Split of a directory or Hub dataset.")] = "test"
    max_samples: (
        Annotated[int, Meta(ge=1, le=10**9, description="Samples of each source, drawn at random. [all]")] | None
    ) = None
    metrics: (
        Annotated[list[str], Meta(min_length=1, description="Metrics to report, the first being the score. [all]")]
        | None
    ) = None
    exact_match: Annotated[
        int,
        Meta(ge=0, le=10**9, description="For this many prompts, generate answers and compare their final numbers."),
    ] = 0
    max_new_tokens: Annotated[int, Meta(ge=1, le=10**6, description="Longest generated answer in tokens.")] = 256

    def sources(self) -> dict[str, tuple[str, str]]:
        """Source and split by name; a single one has no name."""
        if self.data is None:
            return {}
        given = {"": self.data} if isinstance(self.data, str) else self.data
        parts = {name: source.rpartition("@") for name, source in given.items()}
        return {name: (before or after, after if at else self.split) for name, (before, at, after) in parts.items()}
