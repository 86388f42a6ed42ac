"""How a training goes, in every trainer's own keys: rate, schedule, batches, length. What has no key is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from layersift.config.recipe import TaskKind
from layersift.config.train import STATIC, TrainSettings

Keys = dict[str, Any]
WARMUP_RATIO, WARMUP_STEPS = "warmup_ratio", "warmup_steps"


@dataclass(frozen=True)
class Hyperparameters:
    """A training as an advice or a run has it."""

    source: str  # the directory that says so
    model: str
    data: str
    task: TaskKind
    rows: int  # that are trained on
    settings: TrainSettings  # with every value named
    max_length: int
    seed: int
    quantization: str | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.settings.steps(self.rows)

    @property
    def warmup_steps(self) -> int:
        """Of them, those in which the rate rises, counted as transformers counts them."""
        return math.ceil(self.steps * self.settings.warmup_ratio)


@dataclass(frozen=True)
class Spelling:
    """Where a trainer's config says how a training goes."""

    keys: Callable[[Hyperparameters], Keys]
    data: str  # its keys that name the data, which stay the user's
    loraplus: str = ""  # its key for LoRA+; empty: it has none
    checkpointing: bool = True  # it has a key for gradient checkpointing
    quantized: Mapping[str, Keys] = field(default_factory=dict)  # its keys for a base in so many bits
    length: bool = True  # it has a key for the longest sequence
    classifies: bool = False  # it trains classifiers, too
    model: str = ""  # its key for the model, which a config that is there keeps

    def spelt(self, training: Hyperparameters, there: Mapping[str, Any] | None = None) -> Keys:
        """The keys of a training.

        Args:
            there: a config that they go into, whose model and whose way to give the warm-up are kept.
        """
        settings, keys = training.settings, self.keys(training)
        if settings.loraplus_ratio is not None and self.loraplus:
            keys[self.loraplus] = settings.loraplus_ratio
        if there is None:
            return keys
        keys.pop(self.model, None)
        given = {WARMUP_RATIO: settings.warmup_ratio, WARMUP_STEPS: training.warmup_steps}
        other = next((key for key in given if key in there and key not in keys), None)
        if other is None or not given.keys() & keys.keys():
            return keys
        return {key: value for key, value in keys.items() if key not in given} | {other: given[other]}

    def unsaid(self, training: Hyperparameters, title: str) -> list[str]:
        """What of a training a trainer has no key for, and what the user has to name, in sentences."""
        settings, missing = training.settings, []
        if settings.loraplus_ratio is not None and not self.loraplus:
            missing.append(f"LoRA+ (loraplus_ratio {settings.loraplus_ratio:g})")
        if settings.layer_decay is not None:
            missing.append(f"a rate by layer (layer_decay {settings.layer_decay:g})")
        if settings.strategy != STATIC:
            missing.append(f"strategy {settings.strategy}, so that all these layers are trained throughout")
        if settings.gradient_checkpointing and not self.checkpointing:
            missing.append("gradient checkpointing")
        if training.quantization is not None and training.quantization not in self.quantized:
            missing.append(f"a base in {training.quantization}")
        if not self.length:
            missing.append(f"the longest sequence ({training.max_length} tokens)")
        said = [f"{title} has no key here for {what}" for what in missing]
        if training.task in ("classification", "regression") and not self.classifies:
            said.append(f"{title}'s fine-tuning writes text, and {training.source} is for a {training.task} task")
        return [*said, f"name the data yourself ({self.data}); they were {training.data}, {training.rows:,} rows"]


def _precision(settings: TrainSettings) -> Keys:
    return {} if settings.precision is None else {settings.precision: True}


def _of_transformers(
    length: str = "", model: str = "", warmup: str = WARMUP_STEPS
) -> Callable[[Hyperparameters], Keys]:
    """Of a trainer whose keys are those of transformers' TrainingArguments."""

    def keys(training: Hyperparameters) -> Keys:
        settings = training.settings
        named: Keys = {model: training.model} if model else {}
        return {
            **named,
            "learning_rate": settings.rate,
            "lr_scheduler_type": settings.scheduler,
            warmup: settings.warmup_ratio if warmup == WARMUP_RATIO else training.warmup_steps,
            "num_train_epochs": settings.num_epochs,
            "per_device_train_batch_size": settings.batch_size,
            "gradient_accumulation_steps": settings.gradient_accumulation,
            "gradient_checkpointing": settings.gradient_checkpointing,
            "weight_decay": settings.weight_decay,
            **({length: training.max_length} if length else {}),
            **_precision(settings),
            "seed": training.seed,
        }

    return keys


def _axolotl(training: Hyperparameters) -> Keys:
    settings = training.settings
    return {
        "base_model": training.model,
        "learning_rate": settings.rate,
        "lr_scheduler": settings.scheduler,
        WARMUP_RATIO: settings.warmup_ratio,
        "num_epochs": settings.num_epochs,
        "micro_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "weight_decay": settings.weight_decay,
        "sequence_len": training.max_length,
        **_precision(settings),
        "seed": training.seed,
    }


def _llamafactory(training: Hyperparameters) -> Keys:
    keys = _of_transformers("cutoff_len", "model_name_or_path")(training)
    # It checkpoints unless it is told not to.
    keys["disable_gradient_checkpointing"] = not keys.pop("gradient_checkpointing")
    return keys


def _nemo(training: Hyperparameters) -> Keys:
    settings = training.settings
    return {
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "lr": settings.rate,
            "weight_decay": settings.weight_decay,
        },
        "lr_scheduler": {
            "lr_decay_style": settings.scheduler.removesuffix("_with_warmup"),
            "lr_warmup_steps": training.warmup_steps,
            "init_lr": 0.0,
            "min_lr": 0.0 if not settings.scheduler.startswith("constant") else settings.rate,
        },
        "step_scheduler": {
            "global_batch_size": settings.batch_size * settings.gradient_accumulation,
            "local_batch_size": settings.batch_size,
            "num_epochs": math.ceil(settings.num_epochs),
            "max_steps": training.steps,
        },
    }


def _mlx(training: Hyperparameters) -> Keys:
    settings, warmup = training.settings, training.warmup_steps
    keys: Keys = {
        "model": training.model,
        "train": True,
        "optimizer": "adamw",
        "optimizer_config": {"adamw": {"weight_decay": settings.weight_decay}},
        "learning_rate": settings.rate,
        "batch_size": settings.batch_size,
        "grad_accumulation_steps": settings.gradient_accumulation,
        "iters": training.steps * settings.gradient_accumulation,  # forward passes
        "grad_checkpoint": settings.gradient_checkpointing,
        "max_seq_length": training.max_length,
        "seed": training.seed,
    }
    rest = max(1, training.steps - warmup)
    shapes: dict[str, tuple[str, list[float]]] = {
        "linear": ("linear_schedule", [settings.rate, 0.0, rest]),
        "cosine": ("cosine_decay", [settings.rate, rest]),
        "constant_with_warmup": ("linear_schedule", [settings.rate, settings.rate, rest]),
    }
    if settings.scheduler in shapes:
        name, arguments = shapes[settings.scheduler]
        keys["lr_schedule"] = {"name": name, "warmup": warmup, "arguments": arguments}
    return keys


_BITS = {"4bit": 4, "8bit": 8}
SPELLINGS: dict[str, Spelling] = {
    "peft": Spelling(_of_transformers(), "train_dataset", length=False, classifies=True),
    "trl": Spelling(
        _of_transformers("max_length", "model_name_or_path"),
        "dataset_name",
        quantized={name: {f"load_in_{name}": True} for name in _BITS},
        model="model_name_or_path",
    ),
    "axolotl": Spelling(
        _axolotl,
        "datasets",
        loraplus="loraplus_lr_ratio",
        quantized={
            "4bit": {"adapter": "qlora", "load_in_4bit": True},
            "8bit": {"load_in_8bit": True},
        },
        model="base_model",
    ),
    "llamafactory": Spelling(
        _llamafactory,
        "dataset and template",
        loraplus="loraplus_lr_ratio",
        quantized={name: {"quantization_bit": bits} for name, bits in _BITS.items()},
        model="model_name_or_path",
    ),
    "unsloth": Spelling(_of_transformers("max_length"), "train_dataset"),
    "ms-swift": Spelling(
        _of_transformers("max_length", "model", WARMUP_RATIO),
        "dataset",
        loraplus="lorap_lr_ratio",
        quantized={name: {"quant_method": "bnb", "quant_bits": bits} for name, bits in _BITS.items()},
        model="model",
    ),
    "nemo": Spelling(_nemo, "model, dataset", checkpointing=False, length=False),
    "mlx": Spelling(_mlx, "data", model="model"),
}
