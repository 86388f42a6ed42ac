"""How long TRL's SFTTrainer takes with the activation cache, by the same training with layers_to_transform alone.

    python benchmarks/cache_in_trainers.py MODEL DATA.jsonl [--rows 24] [--epochs 3] [--rounds 2]

The upper half of a decoder carries LoRA. Each training runs in a process of its own, the two sides in turn. The result
is written to benchmarks/results/cache_in_trainers.json: seconds, their ratio, and the largest difference of a weight.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from layersift.provenance import made_by

RESULT = Path(__file__).resolve().parent / "results" / "cache_in_trainers.json"
MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIDES = {"layers_to_transform": None, "cached": "auto"}


def train(arguments: argparse.Namespace) -> None:
    """One training, in this process; prints its seconds and how often the prefix was served."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from safetensors.torch import save_file
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from layersift import FrozenPrefix
    from layersift.config.recipe import ModelSource
    from layersift.models.load import load_model

    loaded = load_model(ModelSource(arguments.model, dtype="float32"), "instruction")
    lines = Path(arguments.data).read_text().splitlines()[: arguments.rows]
    rows = [{"prompt": row["question"], "completion": f" {row['answer']}"} for row in map(json.loads, lines)]
    count = loaded.model.config.num_hidden_layers
    config = LoraConfig(r=16, lora_alpha=32, target_modules=MAPS, layers_to_transform=list(range(count // 2, count)))
    callback = FrozenPrefix(cache=SIDES[arguments.side]) if SIDES[arguments.side] else None
    with tempfile.TemporaryDirectory() as place:
        settings = SFTConfig(
            place,
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=4,
            gradient_checkpointing=arguments.checkpointing,
            max_length=256,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            seed=0,
            disable_tqdm=True,
        )
        torch.manual_seed(0)
        trainer = SFTTrainer(
            loaded.model,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            peft_config=config,
            callbacks=[callback] if callback else [],
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    save_file(weights, arguments.weights)
    print(json.dumps({"seconds": seconds, "served": callback.served if callback else 0}))


def measured(arguments: argparse.Namespace, side: str, checkpointing: bool, weights: Path) -> dict[str, float]:
    """One training, in another process."""
    command = [sys.executable, __file__, arguments.model, arguments.data, "--side", side, "--weights", str(weights)]
    command += ["--rows", str(arguments.rows), "--epochs", str(arguments.epochs)]
    command += ["--checkpointing"] * checkpointing
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(arguments: argparse.Namespace) -> None:
    """Both sides in turn, with and without gradient checkpointing."""
    from safetensors.torch import load_file

    found = {}
    with tempfile.TemporaryDirectory() as place:
        for checkpointing in (True, False):
            seconds: dict[str, list[float]] = {side: [] for side in SIDES}
            for _ in range(arguments.rounds):
                for side in SIDES:
                    one = measured(arguments, side, checkpointing, Path(place) / side)
                    seconds[side].append(one["seconds"])
                    print(checkpointing, side, one, flush=True)
            plain, cached = (load_file(Path(place) / side) for side in SIDES)
            apart = max(float((plain[name] - cached[name]).abs().max()) for name in plain)
            middle = {side: statistics.median(of) for side, of in seconds.items()}
            found["checkpointing" if checkpointing else "no checkpointing"] = {
                "seconds": seconds,
                "ratio": middle["cached"] / middle["layers_to_transform"],
                "largest difference of a weight": apart,
            }
    ran = f"--rows {arguments.rows} --epochs {arguments.epochs} --rounds {arguments.rounds}"
    asked = {"command": f"python benchmarks/cache_in_trainers.py MODEL DATA.jsonl {ran}", "rows": arguments.rows}
    asked |= {"epochs": arguments.epochs, "model": Path(arguments.model).name}
    RESULT.write_text(json.dumps({**made_by(), **asked, **found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def main() -> None:
    """Compare, or be one of the trainings that are compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        train(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
