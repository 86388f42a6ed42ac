"""What a run directory says of itself."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from layersift.config.fields import Seed, json_values
from layersift.config.inputs import Columns, ModelSource, TaskKind
from layersift.config.train import TrainSettings
from layersift.errors import LayersiftError, wrap_library_errors
from layersift.files import require_regular, write_json
from layersift.records.data import DataRecord
from layersift.records.reading import read_record, to_json

RECORD_FILE = "layersift.json"
SELECTION_FILE = "selection.json"
HELD_BACK_FILE = "held-back"  # .jsonl or .parquet
READ_FILE = "rows-read.txt"  # a line a digest of what was read; see layersift.data.overlap
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
    """What a run directory says of itself, beside PEFT's adapter files and the selection."""

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
    peak_memory_bytes: int | None  # above the loaded model
    trainable_parameters: int
    adapter_bytes: int
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    trained_digest: str | None = None  # SHA-256 of the trained weights' file and PEFT's configuration; None: schema 1
    # Why the states below the first trained block were no longer kept, where that came to an end.
    prefix_cache_stopped: str | None = None
    shared_prompt_tokens: int = 0  # that all rows begin with, and that the frozen blocks computed once
    # What strategy converging came to, as a freezing one; None for the others.
    strategy_followed: str | None = None
    answers_end_at: tuple[str, ...] = ()  # tokens, and texts of several, that end what is generated
    stopped: str | None = None  # by early stopping: of which step the adapters are, in words
    held_back: HeldBack | None = None  # by --hold-back
    rate_search: RateSearch | None = None  # by --learning-rate auto
    pruned: Pruned | None = None  # after training, by `layersift prune`
    notices: tuple[str, ...] = ()  # such as a loss that was still falling at the end, with what to do

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
