"""Results in the JSON layout of PEFT's `method_comparison` suite, a file for each choice of layers."""

from __future__ import annotations

import platform
import re
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from layersift.adapt.methods import find_method
from layersift.config.train import FULL
from layersift.errors import LayersiftError
from layersift.experiment.choices import BASE
from layersift.experiment.compare import Comparison
from layersift.experiment.judge import Judgement
from layersift.files import read_json
from layersift.provenance import machine, versions

NOT_MEASURED = -1


def method_comparison(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """By experiment name. Figures are means over the seeds, memory is the peak above the loaded model.

    What the suite measures and a comparison does not is null, or -1 where the suite reads whole numbers only.
    """
    results = {}
    for row in comparison.rows:
        if row.choice.name == BASE:
            continue
        choice = row.choice
        words = f"{choice.train.method}-{choice.size}-{choice.name}"
        if choice.budget is not None:
            words += f"-for-{choice.budget:.2f}"
        name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        results[name] = _result(comparison, row, name)
    return results


def is_export(file: Path) -> bool:
    """Whether a file is one that :func:`method_comparison` gave, and nobody else's."""
    try:
        return bool(read_json(file, "an exported row")["run_info"]["experiment_name"] == file.stem)
    except (LayersiftError, KeyError, TypeError):
        return False


def _result(comparison: Comparison, row: Judgement, name: str) -> dict[str, Any]:
    recipe, data, choice, packages = comparison.recipe, comparison.scoring.data, row.choice, versions()
    train = choice.train
    config = (
        None
        if train.method == FULL
        else {
            "peft_type": find_method(train.method).peft_type,
            "r": train.rank,
            "lora_alpha": train.alpha,
            "target_modules": train.target_modules,
            "layers": [[i for i, digit in enumerate(mask) if digit == "1"] for mask in choice.masks],
        }
    )
    tested = {f"test {metric}": value for metric, value in row.metrics.items()}
    trained = {
        "train loss": row.train_loss,
        "train samples": recipe.train.max_samples or comparison.scoring.data.rows,
        "train total tokens": NOT_MEASURED,
    }
    return {
        "run_info": {
            "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "total_time": row.seconds,
            "experiment_name": name,
            "peft_branch": None,
            "train_config": {"model_id": recipe.model.name, "seed": list(comparison.seeds), **asdict(choice.train)},
            "peft_config": config,
            "error_msg": "; ".join(row.failures),
        },
        "train_info": {
            "accelerator_memory_reserved_avg": NOT_MEASURED,
            "accelerator_memory_max": _whole(row.memory),
            "accelerator_memory_reserved_99th": NOT_MEASURED,
            "train_time": row.seconds,
            "file_size": _whole(row.adapter),
            "num_trainable_params": _whole(row.parameters),
            "num_total_params": None,
            "status": "success" if row.score is not None else "failed",
            "metrics": [{"test accuracy": None} | tested | trained],
        },
        "meta_info": {
            "model_info": {"sha": comparison.contents["model"], "created_at": None},
            "dataset_info": {data.source: {"sha": data.fingerprint, "created_at": None}},
            "package_info": {f"{package}-version": packages.get(package) for package in (*packages, "bitsandbytes")},
            "system_info": {
                "system": platform.system(),
                "release": platform.release(),
                "machine": platform.machine(),
                "processor": str(machine()["cpu"]),
                "accelerator": str(machine()["gpu"]),
            },
            "pytorch_info": packages["torch"],
        },
    }


def _whole(value: float | None) -> int:
    return NOT_MEASURED if value is None else round(value)
