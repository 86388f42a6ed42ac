"""Importances that need no training, by model, task, position and number of samples: table *untrained* of the protocol.

    python benchmarks/evidence_untrained.py SHARED DATA MODELS [--only MiniLM]

SHARED holds trec/, sst2/ and gsm8k/, DATA what evidence_tasks.py wrote, MODELS what evidence_models.py fetched. Each
model reads each of its tasks' training rows once, at every position; five samples of each size, none of whose rows are
in another one, are drawn of them by a seed, and debiased CKA is taken on each. Results:
benchmarks/results/evidence/untrained.json, which a finished model and task are not read again for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from layersift.commands.console import Console
from layersift.config.recipe import DataSettings, EvaluateSettings, ModelSource, Recipe
from layersift.config.train import TrainSettings
from layersift.experiment.prepare import checked
from layersift.files import read_json, write_text
from layersift.measures.cka import CKA_DEBIASED
from layersift.models.stacks import find_stack
from layersift.provenance import versions
from layersift.represent.positions import get_position
from layersift.represent.read import Batching, Representations, represent
from layersift.score.context import importances, prepare
from layersift.score.probe import Undefined
from places import enter_places, take_places

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "evidence" / "untrained.json"
SIZES, SAMPLES, SEED = (16, 32, 64, 128, 256), 5, 0
CLASSIFIED: dict[str, DataSettings] = {
    "trec": DataSettings("trec/train.jsonl"),
    "sst2": DataSettings("sst2/train.jsonl"),
    "bbc": DataSettings("bbc/train.jsonl", max_length=128),
    "docstrings": DataSettings("docstrings/train.jsonl"),
    "pairs": DataSettings("pairs/train.jsonl", max_length=192),
}
WRITTEN: dict[str, DataSettings] = {
    "gsm8k": DataSettings("gsm8k/train.jsonl", prompt_column="question", response_column="answer"),
    "code": DataSettings("code/train.jsonl"),
}
# Of each model: its tasks, how many rows are read, and at which positions.
MODELS: dict[str, tuple[dict[str, DataSettings], int, tuple[str, ...]]] = {
    "MiniLM": (CLASSIFIED, 1280, ("mean", "first", "last", "last-content")),
    "MPNet": (CLASSIFIED, 1280, ("mean", "first", "last", "last-content")),
    "SmolLM2.gguf": (WRITTEN, 640, ("response-mean", "mean", "last", "last-content", "last-prompt")),
    "Gemma3.gguf": (WRITTEN, 320, ("response-mean", "mean", "last", "last-content", "last-prompt")),
}


def read(model: str, data: DataSettings, rows: int, positions: tuple[str, ...]) -> dict[str, Representations]:
    """R_0 ... R_M of so many of a task's training rows, or of all there are."""
    recipe = Recipe(
        ModelSource(model, dtype="bfloat16" if model.endswith(".gguf") else None),
        data,
        "nowhere",
        train=TrainSettings(max_samples=rows),
        evaluate=EvaluateSettings(max_samples=8),
        seed=SEED,
    )
    console = Console()
    _, _, prepared = checked(recipe, console)
    loaded = prepared.task.load(SEED)
    examples = prepared.train.examples
    with console.stage(f"{model} reads {data.data}", len(examples), "rows") as progress:
        return represent(
            loaded.model,
            find_stack(loaded.model),
            examples,
            [get_position(name) for name in positions],
            batching=Batching(loaded.pad_id),
            progress=progress,
        )


def of_samples(states: Representations) -> dict[str, list[list[float | None]]]:
    """Importances of every layer in five samples of each size, by size; None where one is undefined."""
    order = torch.randperm(len(states.states[0]), generator=torch.Generator().manual_seed(SEED))
    found = {}
    for size in SIZES:
        if SAMPLES * size > len(order):
            continue
        drawn = [prepare(states.of(order[i * size : (i + 1) * size]), CKA_DEBIASED) for i in range(SAMPLES)]
        values = [importances(one, CKA_DEBIASED) for one in drawn]
        found[str(size)] = [[None if isinstance(v, Undefined) else round(v, 6) for v in one] for one in values]
    return found


def main() -> None:
    """Every model on every task of its kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    take_places(parser)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments = parser.parse_args()
    enter_places(arguments, RESULT.parent)
    found: dict[str, Any] = read_json(RESULT, "importances")["found"] if RESULT.exists() else {}
    for model in arguments.only:
        tasks, rows, positions = MODELS[model]
        for task, data in tasks.items():
            if task in found.setdefault(model, {}):
                continue
            states = read(model, data, rows, positions)
            found[model][task] = {position: of_samples(of) for position, of in states.items()}
            # On one line: most of it is numbers.
            write_text(RESULT, json.dumps({"versions": versions(), "seed": SEED, "found": found}) + "\n")


if __name__ == "__main__":
    main()
