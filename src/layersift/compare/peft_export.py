"""Results in the JSON layout of PEFT's `method_comparison` suite, a file for each choice of layers."""

from __future__ import annotations

import platform
import re
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from layersift.adapt.methods import FULL, find_method
from layersift.compare.standings import UNTOUCHED, Contest, Standing
from layersift.provenance import machine, versions

NOT_MEASURED = -1


def method_comparison(contest: Contest) -> dict[str, dict[str, Any]]:
    """By experiment name. Figures are means over the seeds, memory is the peak above the loaded model.

    What the suite measures and a comparison does not is null, or -1 where the suite reads whole numbers only.
    """
    found = {}
    for standing in contest.standings:
        if standing.entry.name == UNTOUCHED:
            continue
        entry = standing.entry
        name = re.sub(r"[^a-z0-9]+", "-", f"{entry.method}-{entry.size}-{entry.name}".lower()).strip("-")
        found[name] = _result(contest, standing, name)
    return found


def _result(contest: Contest, standing: Standing, name: str) -> dict[str, Any]:
    recipe, entry, packages = contest.recipe, standing.entry, versions()
    settings = asdict(recipe.train) | {
        "learning_rate": entry.learning_rate,
        "method": entry.method,
        "rank": entry.rank,
        "alpha": entry.alpha,
    }
    config = (
        None
        if entry.method == FULL
        else {
            "peft_type": find_method(entry.method).peft_type,
            "r": entry.rank,
            "lora_alpha": entry.alpha,
            "target_modules": recipe.train.target_modules,
            "layers": [[i for i, digit in enumerate(mask) if digit == "1"] for mask in entry.masks],
        }
    )
    tested = {f"test {metric}": value for metric, value in standing.metrics.items()}
    trained = {
        "train loss": standing.train_loss,
        "train samples": recipe.train.max_samples or contest.data["rows"],
        "train total tokens": NOT_MEASURED,
    }
    return {
        "run_info": {
            "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "total_time": standing.seconds,
            "experiment_name": name,
            "peft_branch": None,
            "train_config": {"model_id": recipe.model.name, "seed": list(contest.seeds), **settings},
            "peft_config": config,
            "error_msg": "; ".join(standing.failures),
        },
        "train_info": {
            "accelerator_memory_reserved_avg": NOT_MEASURED,
            "accelerator_memory_max": _whole(standing.memory),
            "accelerator_memory_reserved_99th": NOT_MEASURED,
            "train_time": standing.seconds,
            "file_size": _whole(standing.adapter),
            "num_trainable_params": _whole(standing.parameters),
            "num_total_params": None,
            "status": "success" if standing.score is not None else "failed",
            "metrics": [{"test accuracy": None} | tested | trained],
        },
        "meta_info": {
            "model_info": {"sha": contest.contents["model"], "created_at": None},
            "dataset_info": {str(contest.data["source"]): {"sha": contest.data["fingerprint"], "created_at": None}},
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
