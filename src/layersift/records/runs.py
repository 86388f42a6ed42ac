"""What a run directory says of itself; a grid's cells: what is trained, and what each training gave and cost."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from layersift.config.fields import Seed, json_values, read_as
from layersift.config.quantities import layers_of
from layersift.config.recipe import Columns, ModelSource, TaskKind
from layersift.config.train import TrainSettings
from layersift.errors import LayersiftError, wrap_library_errors
from layersift.files import read_json, require_regular, write_json, write_text
from layersift.records.reading import DataRecord, read_record, to_json

RECORD_FILE = "layersift.json"
SELECTION_FILE = "selection.json"
HELD_BACK_FILE = "held-back"  # .jsonl or .parquet
READ_FILE = "rows-read.txt"  # a line a digest of what was read; see layersift.data.split
DIGEST = re.compile("[0-9a-f]{12}")
# What versions up to 0.1 trained at where the settings named no rate, and did not record.
RATES_BEFORE: dict[TaskKind, float] = {"classification": 5e-4, "regression": 5e-4, "instruction": 2e-4, "text": 2e-4}


@dataclass(frozen=True)
class EncoderRecord:
    """How a run's rows became examples; see :class:`layersift.data.encode.Encoder`."""

    kind: TaskKind
    classes: tuple[str, ...] = ()  # of a classification task, in index order
    max_length: Annotated[int, Meta(ge=1)] = 512
    chat_template: str | None = None  # instead of the tokenizer's own; its text
    languages: tuple[str, str] | None = None  # of prompts and responses, where the model translates between many


@dataclass(frozen=True)
class HeldBack:
    """The rows that a training held back, and what the finished run scores on them."""

    fraction: float  # as asked for
    rows: tuple[int, ...]  # their numbers in the data, counted from 1
    fingerprint: str  # SHA-256 over the columns in use
    file: str  # in the run's directory, of these rows
    metrics: dict[str, float | None]  # the first is the score
    interval: tuple[float, float] | None  # of the score, 95 %, over these rows; None where it is no mean over them
    chose_the_stop: bool = False  # the score also decided when to stop, so that it is a little too good
    tokens_seen: int = 0  # of these rows, those that read like a training row once both are cut
    # Of a classification:
    majority: str | None = None  # the most common class of the training rows
    majority_accuracy: float | None = None  # of always giving it
    class_rows: dict[str, int] = field(default_factory=dict)  # rows of each class
    class_right: dict[str, int] = field(default_factory=dict)  # of them, those predicted right
    class_predicted: dict[str, int] = field(default_factory=dict)  # how often each class was predicted

    @property
    def never_predicted(self) -> tuple[str, ...]:
        """Classes that some of these rows are of, and that the run predicts for none."""
        return tuple(name for name, rows in self.class_rows.items() if rows and not self.class_predicted.get(name))


@dataclass(frozen=True)
class Pruned:
    """What `layersift prune` kept of a trained LoRA adapter, and what it dropped."""

    budget: str  # in words
    parameters: int  # that are left in LoRA's matrices
    of_parameters: int
    whole_modules: int  # parameters of modules that were trained whole, such as a head; all of them are kept
    threshold: float  # the smallest singular value that is kept
    relative_error: float  # the Frobenius norm of what was dropped by that of everything
    ranks: dict[str, int]  # by the modules that are left
    dropped: tuple[str, ...]  # modules without a direction above the threshold
    layers: dict[int, float]  # share of the squared norm by layer, the largest first: what training did; -1: no layer
    from_digest: str  # of the adapter that was pruned

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = json_values(self)
        return values


@dataclass(frozen=True)
class TriedRate:
    """A learning rate in a short training."""

    rate: float
    score: float | None  # on rows held back; None where the training diverged, or the score is undefined
    collapsed: bool = False  # it diverged, or scores far less than the best


@dataclass(frozen=True)
class RateSearch:
    """How `--learning-rate auto` came to its rate."""

    chosen: float
    rule: float  # what a training without a rate would have
    tried: tuple[TriedRate, ...] = ()  # ascending
    metric: str = ""
    steps: int = 0  # of each short training
    held_back: int = 0  # of the training rows, those that judged them
    spent: float = 0.0  # of the FLOPs of the training itself, by the plan
    why_not: str = ""  # why nothing was tried

    def described(self) -> str:
        """For people, in two lines at most."""
        if self.why_not:
            return f"learning rate: {self.chosen:g}, the rule's; nothing was tried: {self.why_not}"
        rates = ", ".join(
            f"{t.rate:g} {'diverged' if t.score is None else f'{t.score:.4f}'}{' (collapsed)' * t.collapsed}"
            for t in self.tried
        )
        by_rule = "as the rule has it" if self.chosen == self.rule else f"the rule's is {self.rule:g}"
        return (
            f"tried for {self.steps} steps each, {self.metric} on {self.held_back} training rows held back: "
            f"{rates}\nlearning rate: {self.chosen:g}, {by_rule}; the search took {self.spent:.1%} of the "
            "training's FLOPs"
        )


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says of itself, beside PEFT's adapter files and the selection.

    Args:
        source: the base model.
        model_revision: commit or digest of its weights.
        encoder: how rows become tokens.
        columns: which column holds what.
        data: the rows and their fingerprint.
        settings: of the training, as they were used.
        seed: of the training.
        mask: a digit a layer, 1 where it carries adapters.
        samples: rows that were trained on.
        steps: optimizer steps.
        train_seconds: how long the training took.
        train_loss: mean over all steps.
        peak_memory_bytes: above the loaded model; None where it cannot be measured.
        trainable_parameters: a head included.
        adapter_bytes: on disk.
        device: that was trained on.
        versions: of the libraries, by name.
        command: the command line that made it.
        trained_digest: SHA-256 of the trained weights' file and PEFT's config; None in records of schema 1.
        activation_cache_stopped: why outputs of the frozen prefix were no longer kept, where that came to an end.
        shared_prompt_tokens: that all rows begin with, and that the frozen blocks computed once.
        padding: the fraction of batches' places that were padding, since the last start; None of images alone, of
            several processes and in older records.
        strategy_followed: what strategy converging came to, as a freezing one; None for the others.
        answers_end_at: tokens, and texts of several, that end what is generated.
        stopped: by early stopping, of which step the adapters are, in words.
        held_back: the rows that were held back, and the scores on them.
        rate_search: how the learning rate was found, with ``learning_rate="auto"``.
        pruned: what ``layersift prune`` took away after training.
        notices: such as a loss that was still falling at the end, with what to do.

    Examples:
        >>> from pathlib import Path
        >>> from layersift import RunRecord
        >>> record = RunRecord.load(Path("run"))
        >>> record.mask, record.samples, record.settings.rank
        ('0011', 24, 8)
    """

    source: ModelSource
    model_revision: str
    encoder: EncoderRecord
    columns: Columns
    data: DataRecord
    settings: TrainSettings
    seed: Seed
    mask: str
    samples: int
    steps: int
    train_seconds: float
    train_loss: float
    peak_memory_bytes: int | None
    trainable_parameters: int
    adapter_bytes: int
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    trained_digest: str | None = None
    activation_cache_stopped: str | None = None
    shared_prompt_tokens: int = 0
    padding: float | None = None
    strategy_followed: str | None = None
    answers_end_at: tuple[str, ...] = ()
    stopped: str | None = None
    held_back: HeldBack | None = None
    rate_search: RateSearch | None = None
    pruned: Pruned | None = None
    notices: tuple[str, ...] = ()

    def save(self, directory: Path) -> None:
        """Write the record into a run directory."""
        write_json(directory / RECORD_FILE, to_json(self))

    @classmethod
    def load(cls, directory: Path) -> RunRecord:
        """Read the record of a finished run, by this version of layersift or an earlier one.

        Raises:
            LayersiftError: the directory is not a finished run, or of a version that is not known yet.
        """
        if not directory.is_dir():
            raise LayersiftError(f"{directory}: no such directory; expected the output of `layersift train`")
        record = read_record(
            cls, directory / RECORD_FILE, "the record of a finished `layersift train`", "model_revision"
        )
        if record.settings.learning_rate is None:
            rate = RATES_BEFORE[record.encoder.kind]
            record = replace(record, settings=replace(record.settings, learning_rate=rate))
        return record


def rows_read(directory: Path) -> frozenset[str] | None:
    """Digests of what a run has read of its training rows; None of a run that does not say.

    Raises:
        LayersiftError: the file holds something else.
    """
    path = directory / READ_FILE
    if not os.path.lexists(path):
        return None
    require_regular(path, "digests of the rows that were trained on")
    with wrap_library_errors(LayersiftError, f"{path}: no digests of rows", "without this file none are counted"):
        lines = path.read_text(encoding="ascii").split()
    if wrong := next((line for line in lines if not DIGEST.fullmatch(line)), None):
        raise LayersiftError(
            f"{path}: {wrong[:40]!r} is no digest of a row (12 hexadecimal digits); without this file none are counted"
        )
    return frozenset(lines)


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
