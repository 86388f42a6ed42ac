"""What is trained, its cells in a grid, and what each cell gave and cost."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from layersift.config.fields import json_values, read_as
from layersift.config.train import TrainSettings
from layersift.errors import LayersiftError
from layersift.files import read_json, write_text
from layersift.records.scores import layers_of

Judged = Literal["test", "validation"]

# Of a training's settings, those that a file name spells out, and alpha, which follows from the rank.
_SPELT = ("method", "rank", "alpha", "learning_rate", "strategy", "epochs", "target_modules")
_IN_A_NAME = re.compile(r"[^a-z0-9.]+")


@dataclass(frozen=True)
class Variant:
    """What is trained: some layers, by some settings."""

    name: str
    mask: str  # a digit a layer; empty: nothing is trained
    train: TrainSettings
    kind: str = ""  # of the kinds that advice has evidence on

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that carry adapters."""
        return layers_of(self.mask)

    def cell(self, seed: int, judged: Judged = "test") -> Cell:
        """Its training with one seed. The base model has no settings."""
        return Cell(self.mask, seed, self.train if self.mask else TrainSettings(), judged)


@dataclass(frozen=True)
class Cell:
    """A variant's training with one seed, and what it is judged on. Variants that differ in name alone share it."""

    mask: str
    seed: int
    train: TrainSettings
    judged: Judged = "test"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that carry adapters."""
        return layers_of(self.mask)

    def __str__(self) -> str:
        """For people: "last 3 of 6 layers, lora of rank 8, rate 0.0066, seed 0"."""
        count, total, train = len(self.layers), len(self.mask), self.train
        if not count:
            return "the base model"
        which = f"last {count} of {total} layers" if self.mask.endswith("1" * count) else f"layers {self.mask}"
        words = [f"all {total} layers" if count == total else which, f"{train.method} of rank {train.rank}"]
        words += [f"rate {train.learning_rate:g}"] if train.learning_rate else []
        words += [train.strategy] if train.strategy != "static" else []
        words += [f"{train.epochs:.3g} epochs"] if train.epochs else []
        return ", ".join([*words, f"seed {self.seed}"])

    def with_settings(self, **settings: Any) -> Cell:
        """The same layers, trained by other settings."""
        return replace(self, train=replace(self.train, **settings))

    def file_name(self, shared: TrainSettings) -> str:
        """The name of its files in a grid.

        Args:
            shared: the recipe's settings; where the cell has them, too, its name does not say them.
        """
        train = self.train
        if not self.mask:
            return f"base-s{self.seed}-{self.judged}"
        name = f"{train.method}-r{train.rank}-lr{train.named_rate or 0:g}-s{self.seed}-{self.judged}-{self.mask}"
        if train.strategy != shared.strategy:
            name += f"-{_IN_A_NAME.sub('_', train.strategy)}"
        if train.target_modules != shared.target_modules:
            name += f"-m{_digest(train.target_modules or '')}"
        if train.epochs != shared.epochs:
            name += f"-e{train.epochs or 0:.6g}"
        own = {
            f.name: value
            for f in fields(train)
            if f.name not in _SPELT and (value := getattr(train, f.name)) != getattr(shared, f.name)
        }
        return f"{name}-x{_digest(json.dumps(json_values(own), sort_keys=True))}" if own else name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Environment:
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
    strategy_followed: str | None = None  # what strategy converging came to
    looks: tuple[Look, ...] = ()  # while it was trained; none where no rows were held back
    notices: tuple[str, ...] = ()  # what should be known of the training, with what to do
    made: Environment = field(default_factory=Environment, compare=False)

    @property
    def followed(self) -> Cell:
        """The cell by what was done: with the strategy that its own came to."""
        return self.cell.with_settings(strategy=self.strategy_followed) if self.strategy_followed else self.cell

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
        return cls.from_json(read_json(path, "the result of a training"), str(path))

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> Result:
        """The result that JSON values hold, also as versions up to 0.1 wrote them.

        Raises:
            LayersiftError: they hold something else; ``where`` names the file.
        """
        if "cell" not in values:
            raise LayersiftError(f"{where}: not the result of a training (no cell)")
        cell = values["cell"]
        if isinstance(cell, dict) and "train" not in cell:
            kept = {name: value for name, value in cell.items() if name not in _SPELT}
            cell = kept | {"train": flat_settings(cell) if cell.get("mask") else {}}
        return read_as(cls, {**values, "cell": cell}, where)


def flat_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that versions up to 0.1 wrote beside a mask; zero and an empty text were the recipe's."""
    return {name: values[name] for name in _SPELT if values.get(name)}
