"""What a training saves whose frozen prefix computes the prompt that all rows begin with once.

    python benchmarks/shared_prompt.py MODEL DATA.jsonl [--rows 16] [--epochs 2] [--rounds 2]

The upper half of a decoder carries LoRA. Each row of DATA (question, answer) stands behind the same instructions, a
text of some 400 tokens. Each training runs in a process of its own, all sides in turn; one further round counts the
FLOPs of their matrix products. The result is written to benchmarks/results/shared_prompt.json: ratios of seconds and
of FLOPs to the same training without --shared-prompt, with and without the activation cache, and the largest difference
of a weight and of the loss.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

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
    """One training, in this process; prints its seconds or FLOPs, and its loss."""
    from torch.utils.flop_counter import FlopCounterMode

    from layersift.config.inputs import DataSettings, ModelSource
    from layersift.config.train import TrainSettings
    from layersift.records.data import DataRecord
    from layersift.records.selection import make_selection
    from layersift.task import Task
    from layersift.training.fit import TrainingData, train
    from layersift.training.output import RunOutput

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
            prefix_cache=cache,
        )
        counter = FlopCounterMode(display=False) if arguments.count else None
        with counter or nullcontext():
            record = train(
                loaded,
                TrainingData(task.encoder, examples, DataRecord()),
                selection,
                settings,
                RunOutput(Path(place) / "run"),
            )
        (Path(place) / "run" / "adapter_model.safetensors").rename(arguments.weights)
    print(
        json.dumps(
            {
                "seconds": record.train_seconds,
                "flops": counter.get_total_flops() if counter else None,
                "loss": record.train_loss,
                "shared tokens": record.shared_prompt_tokens,
                "mean tokens": sum(map(len, examples)) / len(examples),
            }
        )
    )


def run_side(arguments: argparse.Namespace, side: str, weights: Path, count: bool) -> dict[str, float]:
    """One training, in another process."""
    command = [sys.executable, __file__, arguments.model, arguments.data, "--side", side, "--weights", str(weights)]
    command += ["--rows", str(arguments.rows), "--epochs", str(arguments.epochs), *["--count"] * count]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(side, found, flush=True)
    return found


def compare(arguments: argparse.Namespace) -> None:
    """All sides in turn, timed and counted."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as place:
        weights = {side: Path(place) / f"{number}.safetensors" for number, side in enumerate(SIDES)}
        timed = [
            {side: run_side(arguments, side, weights[side], False) for side in SIDES} for _ in range(arguments.rounds)
        ]
        counted = {side: run_side(arguments, side, weights[side], True) for side in SIDES}
        ended = {side: load_file(file) for side, file in weights.items()}
    found = {}
    for whole, shared in (("whole", "shared"), ("whole, cache", "shared, cache")):
        ratios = [turn[shared]["seconds"] / turn[whole]["seconds"] for turn in timed]
        found[f"{shared} / {whole}"] = {
            "flops": counted[shared]["flops"] / counted[whole]["flops"],
            "seconds": statistics.median(ratios),
            "seconds of each round": ratios,
            "difference of the loss": abs(counted[shared]["loss"] - counted[whole]["loss"]),
            "largest difference of a weight": max(
                float((ended[whole][name] - value).abs().max()) for name, value in ended[shared].items()
            ),
        }
    ran = f"--rows {arguments.rows} --epochs {arguments.epochs} --rounds {arguments.rounds}"
    asked = {
        "command": f"python benchmarks/shared_prompt.py MODEL DATA.jsonl {ran}",
        "model": Path(arguments.model).name,
    }
    rows = {name: counted["shared"][name] for name in ("shared tokens", "mean tokens")}
    write_json(RESULT, {**made_by(), **asked, **rows, "ratios": found, "counted": counted, "timed": timed})
    print(json.dumps(found, indent=1))


def main() -> None:
    """Compare, or be one of the trainings that are compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        train_side(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
