"""What planning takes of processor time: `inspect --plan`, `advise` on a 7B, a thousand masks, a dry run of `compare`.

    python benchmarks/planning_cost.py MODEL DATA

MODEL is a directory with MiniLM, DATA holds trec/train.jsonl and trec/test.jsonl. SmolLM2 and Llama 2 are made of their
configurations alone. Processor time is that of the processes themselves, so that other work on the machine does not
count. Results: benchmarks/results/planning_cost.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import transformers

from layersift.adapt.methods import adapter_config
from layersift.advise.adviser import advise
from layersift.advise.candidates import Prices
from layersift.config.fields import json_values
from layersift.config.limits import Limits
from layersift.config.recipe import DataSettings, ModelSource, Recipe
from layersift.config.train import TrainSettings
from layersift.data.examples import Example
from layersift.files import write_json
from layersift.models.stacks import find_stack
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from layersift.progress import Reporter
from layersift.provenance import machine, versions

RESULT = Path(__file__).parent / "results" / "planning_cost.json"
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LLAMA_2_7B: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "dtype": "float16"}  # of LlamaConfig's defaults
MASKS, ROWS, PACE = 1000, 1000, 1e13  # FLOPs a second of a GPU, which no step has to be taken for


def saved(place: Path, **settings: Any) -> str:
    """A directory with a Llama's configuration alone."""
    config = transformers.LlamaConfig(**{"architectures": ["LlamaForCausalLM"], **settings})
    config.save_pretrained(place)
    return str(place)


def command_seconds(*words: str | Path) -> tuple[float, str]:
    """Processor time of a command, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run(
        [sys.executable, "-m", "layersift", *map(str, words)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, shown.stdout


def inspect_seconds(model: str) -> dict[str, float]:
    """Of `inspect`, and with --plan: of three runs each the least."""
    plain = min(command_seconds("inspect", model)[0] for _ in range(3))
    planned = min(command_seconds("inspect", model, "--plan")[0] for _ in range(3))
    return {"inspect": plain, "inspect --plan": planned, "more": planned - plain}


def advise_seconds(model: str) -> dict[str, Any]:
    """Of all of `advise` but reading the rows and taking the steps that its pace is measured by, which take weights."""
    draw = random.Random(0)
    lengths = [draw.randint(40, 400) for _ in range(ROWS)]
    examples = [Example((1,) * n, (True,) * n, (False,) * (n // 2) + (True,) * (n - n // 2)) for n in lengths]
    prepared: Any = SimpleNamespace(
        train=SimpleNamespace(examples=examples), encoder=SimpleNamespace(kind="instruction", seq2seq=False, classes=())
    )
    recipe = Recipe(
        ModelSource(model),
        DataSettings("rows.jsonl"),
        "run",
        train=TrainSettings(rank=16, epochs=2.0, learning_rate=2e-4, target_modules="all-linear"),
    )
    begun = time.process_time()
    with patch.object(Prices, "measured_pace", lambda *_: PACE):
        advice = advise(recipe, prepared, Limits(memory="24GB", time="0.7"), reporter=Reporter())
    return {"seconds": time.process_time() - begun, "candidates": len(advice.priced)}


def mask_seconds(model: torch.nn.Module) -> dict[str, float]:
    """Of FLOPs, peak and parameters of a step, once the blocks have been measured: new masks, rank 8 on q and v."""
    stack, size = find_stack(model), StepSize("instruction", 8, 256)
    planner = Planner(model, stack, adapter_config(TrainSettings(), "instruction", 1))
    draw, layers = random.Random(0), range(stack.num_layers)
    begun = time.process_time()
    planner.step(tuple(layers), size)
    first = time.process_time() - begun
    masks = [tuple(sorted(draw.sample(layers, draw.randint(1, stack.num_layers)))) for _ in range(50 + MASKS)]
    for mask in masks[:50]:
        planner.step(mask, size)
    begun = time.process_time()
    for mask in masks[50:]:
        planner.step(mask, size)
    return {"the first": first, f"{MASKS} masks": time.process_time() - begun}


def dry_run_seconds(model: str, data: Path, place: Path) -> dict[str, Any]:
    """Of a dry run of `compare` on TREC, 40 rows."""
    recipe = {
        "model": {"name": model},
        "data": {"data": str(data / "trec" / "train.jsonl")},
        "evaluate": {"data": str(data / "trec" / "test.jsonl")},
        "output": str(place / "out"),
        "train": {"max_samples": 1000, "epochs": 3},
        "compare": {
            "sizes": [2, 4],
            "strategies": ["freezing", "rotating:3@20"],
            "criteria": ["cka", "last", "first", "middle"],
        },
    }
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    seconds, shown = command_seconds("compare", place / "recipe.yaml", "--dry-run", "--json")
    forecast = json.loads(shown)
    return {"seconds": seconds, "trainings": forecast["trainings"], "FLOPs": forecast["flops"]}


def main() -> None:
    """All four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        small, large = saved(place / "SmolLM2", **SMOLLM2), saved(place / "Llama-2-7B", **LLAMA_2_7B)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(small))
        figures = {
            "inspect SmolLM2": inspect_seconds(small),
            "advise Llama-2-7B, 1,000 rows": advise_seconds(large),
            "masks of SmolLM2": mask_seconds(model),
            "compare --dry-run, MiniLM": dry_run_seconds(arguments.model, arguments.data.resolve(), place),
        }
    print(json.dumps(figures, indent=2))
    write_json(
        RESULT, {"seconds of processor time": json_values(figures), "machine": machine(), "versions": versions()}
    )


if __name__ == "__main__":
    main()
