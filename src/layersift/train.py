"""Train adapters on the selected layers with the transformers Trainer."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftConfig

from .adapt import attach
from .data import TaskKind
from .encode import Encoder
from .errors import LayersiftError, ModelError
from .examples import Example, collate
from .files import read_json, require_new, write_json
from .loader import IGNORED
from .memory import peak_memory
from .models import LoadedModel, ModelSource
from .provenance import command, versions
from .sampling import LengthGroupedSampler
from .selection import Selection

RECORD = "layersift.json"
SELECTION = "selection.json"
SCHEMA_VERSION = 1
CHECKPOINTS_A_RUN = 4


@dataclass(frozen=True)
class TrainSettings:
    """LoRA on the selected layers. The rates are those common for each kind of task, not tuned on any test data."""

    max_samples: int | None = None  # None: all
    epochs: float = 3.0
    learning_rate: float | None = None  # None: 5e-4 with a classification head, 2e-4 for text
    batch_size: int = 16
    gradient_accumulation: int = 1
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: str | None = None  # None: PEFT's default; "all-linear", a regex, or names separated by commas
    scheduler: str = "linear"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation", "rank", "alpha"):
            if not getattr(self, name) > 0:
                raise LayersiftError(
                    f"{name.replace('_', '-')} {getattr(self, name)} is out of range; above 0 is needed"
                )
        if self.max_samples is not None and self.max_samples < 1:
            raise LayersiftError(f"max-samples {self.max_samples} is out of range; at least 1 is needed")
        if self.learning_rate is not None and not 0 < self.learning_rate < 10:
            raise LayersiftError(f"learning-rate {self.learning_rate} is out of range")
        if not 0 <= self.dropout < 1:
            raise LayersiftError(f"dropout {self.dropout} is out of range; from 0 to below 1 is possible")
        if not 0 <= self.warmup_ratio < 1:
            raise LayersiftError(f"warmup-ratio {self.warmup_ratio} is out of range; from 0 to below 1 is possible")
        known = [str(kind.value) for kind in transformers.SchedulerType]
        if self.scheduler not in known:
            raise LayersiftError(f"unknown scheduler {self.scheduler!r}; known: {', '.join(known)}")

    def rate(self, kind: TaskKind) -> float:
        """The learning rate for a kind of task."""
        return self.learning_rate or (2e-4 if kind in ("instruction", "text") else 5e-4)

    def steps(self, samples: int) -> int:
        """Optimizer steps for that many samples."""
        batches = math.ceil(samples / self.batch_size)
        return math.ceil(self.epochs * math.ceil(batches / self.gradient_accumulation))

    def lora(self, kind: TaskKind) -> LoraConfig:
        """The adapter's config; which layers it reaches is the selection's business."""
        targets: Any = self.target_modules
        if targets and targets != "all-linear" and all(part.isidentifier() for part in targets.split(",")):
            targets = targets.split(",")
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM" if kind in ("instruction", "text") else "SEQ_CLS",
        )


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says of itself, beside PEFT's adapter files and the selection."""

    source: dict[str, Any]  # ModelSource
    model_revision: str
    encoder: dict[str, Any]  # kind, classes, max_length, chat_template
    columns: dict[str, str]
    data: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    mask: str
    samples: int
    steps: int
    train_seconds: float
    train_loss: float
    peak_memory_bytes: int | None  # above the loaded model
    trainable_parameters: int
    adapter_bytes: int
    device: str
    versions: dict[str, str]
    command: str

    def save(self, directory: Path) -> None:
        """Write the record into a run directory."""
        write_json(directory / RECORD, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def load(cls, directory: Path) -> RunRecord:
        """Read the record of a finished run.

        Raises:
            LayersiftError: the directory is not a finished run, or of another version.
        """
        if not directory.is_dir():
            raise LayersiftError(f"{directory}: no such directory; expected the output of `layersift train`")
        values = read_json(directory / RECORD, "the record of a finished `layersift train`")
        version = values.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise LayersiftError(f"{directory / RECORD}: schema version {version!r}; expected {SCHEMA_VERSION}")
        if set(values) != {f.name for f in fields(cls)}:
            raise LayersiftError(f"{directory / RECORD}: not a record of this version of layersift")
        return cls(**values)

    def model_source(self) -> ModelSource:
        """Where the base model comes from."""
        return ModelSource(**self.source)


class _Trainer(transformers.Trainer):  # type: ignore[misc]  # transformers is not typed
    """The Trainer with batches of like length."""

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        lengths = [len(example) for example in self.train_dataset]
        return LengthGroupedSampler(lengths, self.args.per_device_train_batch_size, self.args.seed)


class _Steps(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self, progress: Callable[[int], None]) -> None:
        self.progress, self.done = progress, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step - self.done)
        self.done = state.global_step


def training_batch(examples: Sequence[Example], pad_id: int, kind: TaskKind) -> dict[str, torch.Tensor]:
    """Model inputs with labels: the class, the number, or the tokens of the response (-100 elsewhere)."""
    batch = collate(examples, pad_id)
    if kind == "classification":
        batch["labels"] = torch.tensor([e.label for e in examples])
    elif kind == "regression":
        batch["labels"] = torch.tensor([e.label for e in examples], dtype=torch.float32)
    else:
        batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
        for row, example in enumerate(examples):
            response = torch.tensor(example.response)
            batch["labels"][row, : len(example)][response] = batch["input_ids"][row, : len(example)][response]
    return batch


def partial_directory(output: Path) -> Path:
    """Where an unfinished training keeps its checkpoints."""
    return output.with_name(output.name + ".partial")


def require_trainable(output: Path, resume: bool) -> None:
    """Refuse to write over a finished run, or to lose an unfinished one.

    Raises:
        LayersiftError: ``output`` exists, or an unfinished training does and ``resume`` is off.
    """
    require_new(output, "train")
    partial = partial_directory(output)
    if partial.exists() and not resume:
        raise LayersiftError(f"{partial} holds an unfinished training; add --resume to carry on, or remove it")


def train(
    loaded: LoadedModel,
    source: ModelSource,
    encoder: Encoder,
    examples: Sequence[Example],
    data: dict[str, Any],
    selection: Selection,
    settings: TrainSettings,
    output: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    merge: bool = False,
    config: PeftConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> RunRecord:
    """Train adapters on the selected layers and write the run directory in one move.

    While training, checkpoints stand in ``output.partial``; ``resume`` carries on from the last one.

    Args:
        examples: encoded by ``encoder``.
        data: what the record says of the data.
        config: another PEFT config than the settings' LoRA.
        merge: also save the base model with the adapters merged in, under ``output/merged``.
        progress: called with the number of optimizer steps done since the last call.

    Raises:
        LayersiftError: the output exists, or the unfinished training there had other settings.
        ModelError: text is to be trained with a model that writes none.
        AdapterError, SelectionError: see :func:`layersift.adapt.attach`.
    """
    require_trainable(output, resume)
    if encoder.kind in ("instruction", "text") and not loaded.model.can_generate():
        raise ModelError(
            f"{loaded.name!r} ({type(loaded.model).__name__}) does not write text; it cannot be trained to"
        )
    device = loaded.model.device
    peft_model = attach(loaded.model, selection, config or settings.lora(encoder.kind), seed=seed)
    partial = partial_directory(output)
    plan: dict[str, Any] = {
        "settings": asdict(settings),
        "seed": seed,
        "mask": selection.mask,
        "data": data,
        "model": loaded.revision,
        "samples": len(examples),
    }
    checkpoint = _open_partial(partial, plan)
    steps = settings.steps(len(examples))
    trainer = _Trainer(
        model=peft_model,
        args=_arguments(settings, encoder.kind, partial, steps, seed, device),
        train_dataset=list(examples),
        data_collator=lambda batch: training_batch(batch, loaded.pad_id, encoder.kind),
        callbacks=[_Steps(progress)] if progress else [],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    started = time.perf_counter()
    with peak_memory(device) as peak:
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    peft_model.save_pretrained(partial)
    _write_canonical_config(partial / "adapter_config.json")
    loaded.tokenizer.save_pretrained(partial)
    selection.save(partial / SELECTION)
    record = RunRecord(
        source=asdict(source),
        model_revision=loaded.revision,
        encoder={name: value for name, value in vars(encoder).items() if name != "tokenizer"},
        columns=data.get("columns", {}),
        data=data,
        settings=plan["settings"],
        seed=seed,
        mask=selection.mask,
        samples=len(examples),
        steps=steps,
        train_seconds=round(seconds, 3),
        train_loss=float(outcome.training_loss),
        peak_memory_bytes=peak.bytes,
        trainable_parameters=sum(p.numel() for p in peft_model.parameters() if p.requires_grad),
        adapter_bytes=(partial / "adapter_model.safetensors").stat().st_size,
        device=str(device),
        versions=versions(),
        command=command(),
    )
    record.save(partial)
    if merge:
        peft_model.merge_and_unload().save_pretrained(partial / "merged")
        loaded.tokenizer.save_pretrained(partial / "merged")
    shutil.rmtree(partial / "checkpoints", ignore_errors=True)
    (partial / "plan.json").unlink()
    partial.rename(output)
    return record


def _open_partial(partial: Path, plan: dict[str, Any]) -> Path | None:
    """Start an unfinished training's directory, or find the last checkpoint in it."""
    plan = json.loads(json.dumps(plan))
    if not partial.exists():
        write_json(partial / "plan.json", plan)
        return None
    before = read_json(partial / "plan.json", "the plan of an unfinished training")
    changed = sorted(name for name in plan if before.get(name) != plan[name])
    if changed:
        raise LayersiftError(f"{partial}: begun with other {', '.join(changed)}; resume with the same, or remove it")
    checkpoints = sorted((partial / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    return checkpoints[-1] if checkpoints else None


def _arguments(
    settings: TrainSettings, kind: TaskKind, partial: Path, steps: int, seed: int, device: torch.device
) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=str(partial / "checkpoints"),
        num_train_epochs=settings.epochs,
        learning_rate=settings.rate(kind),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        save_strategy="steps",
        save_steps=max(1, math.ceil(steps / CHECKPOINTS_A_RUN)),
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **({"gradient_checkpointing": True} if settings.gradient_checkpointing else {}),
    )


def _write_canonical_config(path: Path) -> None:
    """PEFT writes sets in an order that changes from run to run; sorted, equal configs are equal files."""
    values = json.loads(path.read_text())
    write_json(path, {k: sorted(v) if isinstance(v, list) and _texts(v) else v for k, v in sorted(values.items())})


def _texts(values: list[Any]) -> bool:
    return all(isinstance(v, str) for v in values)
