"""How much does a process grow while it trains on a CPU, and how much of that does the C library's heap keep?

    python benchmarks/heap_growth.py DATA

SmolLM2 on 24 problems of GSM8K, three steps with all layers, bfloat16, checkpointing, with glibc's own threshold and
with MALLOC_MMAP_THRESHOLD_=1048576, in turn; DATA as in criteria.py. Results: benchmarks/results/heap_growth.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from layersift.files import write_json
from layersift.provenance import made_by
from places import enter_workplace

HERE = Path(__file__).resolve().parent
THRESHOLDS = (None, "1048576")
ROUNDS = 2
COLUMNS = ["--data", "gsm8k/train.jsonl", "--prompt-column", "question", "--response-column", "answer"]
TRAIN = [
    "--dtype",
    "bfloat16",
    "--max-samples",
    "24",
    "--epochs",
    "1",
    "--batch-size",
    "8",
    "--rank",
    "16",
    "--alpha",
    "32",
]
TRAIN += ["--target-modules", "all-linear", "--gradient-checkpointing", "--json"]


def layersift(*words: str, **more: str) -> str:
    """What the command line prints."""
    command = [sys.executable, "-m", "layersift", *words]
    return subprocess.run(command, check=True, text=True, capture_output=True, env=os.environ | more).stdout


def main() -> None:
    """Both thresholds, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    results = HERE / "results"
    enter_workplace(parser.parse_args().data, results / "strategies")
    layersift("select", "SmolLM2.gguf", *COLUMNS, "--criterion", "last", "--ratio", "1.0", "-o", "all.json")
    found = []
    for number in range(ROUNDS):
        for threshold in THRESHOLDS:
            run = f"run-{number}-{threshold}"
            more = {} if threshold is None else {"MALLOC_MMAP_THRESHOLD_": threshold}
            layersift("train", "SmolLM2.gguf", *COLUMNS, *TRAIN, "--selection", "all.json", "-o", run, **more)
            record = json.loads((Path(run) / "layersift.json").read_text())
            one = {"threshold": threshold, "seconds": record["train_seconds"], "MiB": record["peak_memory_bytes"] >> 20}
            print(one, flush=True)
            found.append(one)
    write_json(results / "heap_growth.json", {**made_by(), "found": found})


if __name__ == "__main__":
    main()
