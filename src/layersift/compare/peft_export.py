"""Results in the JSON layout of PEFT's `method_comparison` suite, a file for each choice of layers."""

from __future__ import annotations

import platform
import re
from dataclasses import asdict
from typing import Any

from layersift.compare.standings import UNTOUCHED, Contest, Standing
from layersift.provenance import machine, versions


def method_comparison(contest: Contest) -> dict[str, dict[str, Any]]:
    """By experiment name; what the suite measures and a comparison does not is null.

    Figures are means over the seeds. Memory is the peak above the loaded model.
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
    settings = asdict(recipe.train) | {"learning_rate": entry.learning_rate, "method": entry.method}
    config = {
        "peft_type": entry.method.upper(),
        "r": entry.rank,
        "lora_alpha": entry.alpha,
        "target_modules": recipe.train.target_modules,
        "layers": [[i for i, digit in enumerate(mask) if digit == "1"] for mask in entry.masks],
    }
    memory = None if standing.memory is None else round(standing.memory)
    return {
        "run_info": {
            "created_at": None,
            "total_time": standing.seconds,
            "experiment_name": name,
            "peft_branch": None,
            "train_config": {"model_id": recipe.model.name, "seed": list(contest.seeds), **settings},
            "peft_config": config,
            "error_msg": "; ".join(standing.failures),
        },
        "train_info": {
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_max": memory,
            "accelerator_memory_reserved_99th": None,
            "train_time": standing.seconds,
            "file_size": None,
            "num_trainable_params": None if standing.parameters is None else round(standing.parameters),
            "num_total_params": None,
            "status": "success" if standing.score is not None else "failed",
            "metrics": [{f"test {metric}": value for metric, value in standing.metrics.items()}],
        },
        "meta_info": {
            "model_info": {"sha": None, "created_at": None},
            "dataset_info": {str(contest.data["source"]): {"sha": contest.data["fingerprint"], "created_at": None}},
            "package_info": {f"{package}-version": version for package, version in packages.items()},
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
