"""What a training saves whose frozen prefix computes the prompt that all rows begin with once.

    python benchmarks/shared_prompt.py MODEL DATA.jsonl [--rows 16] [--epochs 2]

The upper half of a decoder carries LoRA. Each row of DATA (question, answer) stands behind the same instructions, a
text of some 400 tokens. Each training runs in a process of its own. The result is written to
benchmarks/results/shared_prompt.json: ratios of processor seconds and of FLOPs of matrix products to the same training
without --shared-prompt, with and without the activation cache, and the differences of loss and weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from layersift.files import write_json
from layersift.provenance import made_by

RESULT = Path(__file__).resolve().parent / "results" / "shared_prompt.json"
RULE = (
    "Rule {}: read the question to its end before you calculate, name each quantity with its unit, write one step a "
    "line, and leave out whatever does not change the result."
)
INSTRUCTIONS = " ".join(RULE.format(number) for number in range(1, 11))
SIDES = {
    "whole": (False, "off"),
    "shared": (True, "off"),
    "whole, cache": (False, "auto"),
    "shared, cache": (True, "auto"),
}


def train_side(arguments: argparse.Namespace) -> None:
    """One training, in this process; prints its seconds, FLOPs and loss."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    from layersift.config.recipe import DataSettings, ModelSource
    from layersift.config.train import TrainSettings
    from layersift.records.reading import DataRecord
    from layersift.records.selection import make_selection
    from layersift.task import Task
    from layersift.training.fit import TrainingData, train
    from layersift.training.output import RunOutput

    class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Adds up the FLOPs of matrix products. torch's FlopCounterMode also follows modules, which fails here."""

        flops = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            if (formula := flop_registry.get(func.overloadpacket)) is not None:
                self.flops += formula(*args, **(kwargs or {}), out_val=output)
            return output

    shared, cache = SIDES[arguments.side]
    lines = Path(arguments.data).read_text().splitlines()[: arguments.rows]
    rows = [{"prompt": f"{INSTRUCTIONS} {r['question']}", "response": r["answer"]} for r in map(json.loads, lines)]
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = Task.open(ModelSource(arguments.model, dtype="float32"), DataSettings(str(data), max_length=1024))
        loaded, stack = task.load(0), task.stack
        examples = task.encode(None, 0).examples
        layers = tuple(range(stack.num_layers // 2, stack.num_layers))
        selection = make_selection(loaded.name, loaded.revision, stack, layers, DataRecord(), "benchmark")
        settings = TrainSettings(
            epochs=arguments.epochs,
            batch_size=4,
            learning_rate=1e-3,
            target_modules="all-linear",
            shared_prompt=shared,
            activation_cache=cache,
        )
        counter, begun = Counter(), time.process_time()  # type: ignore[no-untyped-call]
        with counter:
            record = train(
                loaded,
                TrainingData(task.encoder, examples, DataRecord()),
                selection,
                settings,
                RunOutput(Path(place) / "run"),
            )
        seconds = time.process_time() - begun
        (Path(place) / "run" / "adapter_model.safetensors").rename(arguments.weights)
    print(
        json.dumps(
            {
                "processor seconds": seconds,
                "flops": counter.flops,
                "loss": record.train_loss,
                "shared tokens": record.shared_prompt_tokens,
                "mean tokens": sum(map(len, examples)) / len(examples),
            }
        )
    )


def run_side(arguments: argparse.Namespace, side: str, weights: Path) -> dict[str, float]:
    """One training, in another process."""
    command = [sys.executable, __file__, arguments.model, arguments.data, "--side", side, "--weights", str(weights)]
    command += ["--rows", str(arguments.rows), "--epochs", str(arguments.epochs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(side, found, flush=True)
    return found


def compare(arguments: argparse.Namespace) -> None:
    """All sides in turn."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as place:
        weights = {side: Path(place) / f"{number}.safetensors" for number, side in enumerate(SIDES)}
        sides = {side: run_side(arguments, side, weights[side]) for side in SIDES}
        ended = {side: load_file(file) for side, file in weights.items()}
    found = {}
    for whole, shared in (("whole", "shared"), ("whole, cache", "shared, cache")):
        found[f"{shared} / {whole}"] = {
            **{name: sides[shared][name] / sides[whole][name] for name in ("flops", "processor seconds")},
            "difference of the loss": abs(sides[shared]["loss"] - sides[whole]["loss"]),
            "largest difference of a weight": max(
                float((ended[whole][name] - value).abs().max()) for name, value in ended[shared].items()
            ),
        }
    ran = f"--rows {arguments.rows} --epochs {arguments.epochs}"
    asked = {
        "command": f"python benchmarks/shared_prompt.py MODEL DATA.jsonl {ran}",
        "model": Path(arguments.model).name,
    }
    rows = {name: sides["shared"][name] for name in ("shared tokens", "mean tokens")}
    write_json(RESULT, {**made_by(), **asked, **rows, "ratios": found, "sides": sides})
    print(json.dumps(found, indent=1))


def main() -> None:
    """Compare, or be one of the trainings that are compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        train_side(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
