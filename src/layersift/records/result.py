"""One cell of a grid: what was trained, and what it gave and cost."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from layersift.config.fields import json_values, read_as
from layersift.errors import LayersiftError
from layersift.files import read_json, write_text
from layersift.records.scores import layers_of

Judged = Literal["test", "validation"]


_IN_A_NAME = re.compile(r"[^a-z0-9.]+")


@dataclass(frozen=True)
class Cell:
    """What is trained, how, and what it is judged on."""

    mask: str  # a digit a layer; empty: nothing is trained
    seed: int
    method: str = "lora"
    learning_rate: float = 0.0  # 0: that of the kind of task
    rank: int = 8
    alpha: float = 16
    judged: Judged = "test"
    strategy: str = ""  # the recipe's
    epochs: float = 0.0  # 0: the recipe's
    target_modules: str = ""  # the recipe's

    @property
    def name(self) -> str:
        """A file name."""
        if not self.mask:
            return f"untouched-s{self.seed}-{self.judged}"
        found = f"{self.method}-r{self.rank}-lr{self.learning_rate:g}-s{self.seed}-{self.judged}-{self.mask}"
        if self.strategy:
            found += f"-{_IN_A_NAME.sub('_', self.strategy)}"
        if self.target_modules:
            found += f"-m{hashlib.sha256(self.target_modules.encode()).hexdigest()[:8]}"
        return found + (f"-e{self.epochs:.6g}" if self.epochs else "")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that carry adapters."""
        return layers_of(self.mask)


@dataclass(frozen=True)
class Surroundings:
    """Where a training was made, as far as its figures may depend on it."""

    versions: dict[str, str] = field(default_factory=dict)
    device: str = "unknown"
    threads: int = 0

    def described(self) -> str:
        """For people."""
        packages = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.device}, {self.threads} threads, {packages}" if self.versions else "not recorded"


@dataclass(frozen=True)
class Look:
    """What a training had come to on held-back rows when a share of its steps was done."""

    share: float
    score: float | None  # None where it is undefined
    outcomes: tuple[float, ...]  # one a held-back row, as those of a result
    weights: tuple[float, ...] = ()
    never_predicted: tuple[str, ...] = ()  # classes of several of these rows


@dataclass(frozen=True)
class Result:
    """What one training, judged, gave and cost; the costs are None where nothing was trained."""

    cell: Cell
    metrics: dict[str, float | None]
    samples: int
    outcomes: tuple[float, ...] = ()  # one a test sample, for paired comparisons
    weights: tuple[float, ...] = ()  # of the outcomes in the score; none: all alike
    standard_error: float | None = None  # of the score, over the test samples, where it is a mean
    trainable_parameters: int | None = None
    train_seconds: float | None = None
    peak_memory_bytes: int | None = None  # above the loaded model
    adapter_bytes: int | None = None
    train_loss: float | None = None  # the mean over its steps; of a resumed training over those since the checkpoint
    retention_loss: float | None = None  # a token, on text of another kind
    strategy_followed: str | None = None  # what strategy settling came to
    looks: tuple[Look, ...] = ()  # while it was trained; none where no rows were held back
    notices: tuple[str, ...] = ()  # what should be known of the training, with what to do
    made: Surroundings = field(default_factory=Surroundings, compare=False)

    @property
    def followed(self) -> Cell:
        """The cell by what was done: with the strategy that its own came to."""
        return replace(self.cell, strategy=self.strategy_followed) if self.strategy_followed else self.cell

    @property
    def score(self) -> float | None:
        """The first metric."""
        return next(iter(self.metrics.values()))

    def summary(self) -> dict[str, Any]:
        """As JSON values: its mask, and all but what a single sample gave."""
        values = {k: v for k, v in json_values(self).items() if k not in ("cell", "outcomes", "weights")}
        return {"mask": self.cell.mask, **values}

    def save(self, path: Path) -> None:
        """Write it, all or nothing; on one line, since most of it is a number for each test sample."""
        values = json_values(self) | {"outcomes": [round(o, 6) for o in self.outcomes]}
        write_text(path, json.dumps(values, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read it back.

        Raises:
            LayersiftError: another kind of file.
        """
        values = read_json(path, "the result of a training")
        if "cell" not in values:
            raise LayersiftError(f"{path}: not the result of a training (no cell)")
        return read_as(cls, values, str(path))
