"""What training some layers costs: against all layers, and against PEFT's own way, in a plain Trainer.

    python benchmarks/training_cost.py DATA [--runs 3] [--only minilm smollm2]

DATA holds trec/ and gsm8k/. Each claim runs its sides in turn in this process tree, several times, each in a process
of its own; ratios are medians over the runs, with the lowest and highest. All sides start from the same adapter weights
and end at losses and scores that are kept beside one another. A plain Trainer draws its batches at random; layersift
puts samples of like length together, and one more side gives a plain Trainer the same batches, to tell the two savings
apart.

minilm   layers 3 to 5 of MiniLM on TREC, 10 epochs: layersift with its cache, layersift without, against PEFT on all
         six layers in a plain Trainer, and against PEFT with layers_to_transform in a plain Trainer.
smollm2  the upper half of SmolLM2 on GSM8K, 1 epoch, gradient checkpointing on: the same sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

from layersift.adapt.methods import adapter_config
from layersift.adapt.targets import derive_config, resolve_targets
from layersift.config.defaults import Trained, default_rate, hidden_size
from layersift.config.recipe import DataSettings, ModelSource, TaskKind
from layersift.config.train import TrainSettings
from layersift.data.examples import Example, labelled_batch
from layersift.data.table import read_data
from layersift.evaluation.metrics import evaluate
from layersift.files import write_json
from layersift.models.load import LoadedModel
from layersift.models.stacks import find_stack
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from layersift.provenance import command, machine, versions
from layersift.records.reading import DataRecord
from layersift.records.selection import make_selection
from layersift.step.counters import peak_memory
from layersift.task import Task
from layersift.training.fit import TrainingData, train
from layersift.training.output import RunOutput
from layersift.training.trainer import LengthGroupedSampler
from places import located

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Claim:
    """A task, and the layers that are trained."""

    model: str
    train: str
    test: str
    columns: dict[str, Any]
    layers: tuple[int, ...]
    settings: TrainSettings
    test_samples: int | None = None


CLAIMS = {
    "minilm": Claim(
        "MiniLM",
        "trec/train.jsonl",
        "trec/test.jsonl",
        {},
        (3, 4, 5),
        TrainSettings(max_samples=500, epochs=10, batch_size=16, learning_rate=1e-3, prefix_dropout=False),
    ),
    "smollm2": Claim(
        "SmolLM2.gguf",
        "gsm8k/train.jsonl",
        "gsm8k/test.jsonl",
        {"prompt_column": "question", "response_column": "answer"},
        tuple(range(15, 30)),
        TrainSettings(
            max_samples=32,
            epochs=1,
            batch_size=8,
            learning_rate=1e-3,
            rank=16,
            alpha=32,
            target_modules="all-linear",
            gradient_checkpointing=True,
        ),
        32,
    ),
}
OURS = ("layersift, cache", "layersift")
PLAIN = ("all layers, plain", "layers_to_transform, plain", "all layers, plain, same batches")


def load(claim: Claim, data: Path) -> tuple[LoadedModel, Any, tuple[Example, ...], tuple[Example, ...]]:
    """Model, encoder, training and test samples."""
    settings = DataSettings(str(data / claim.train), **claim.columns)
    test = read_data(replace(settings, data=str(data / claim.test)))
    task = Task.open(ModelSource(located(claim.model)), settings)
    loaded = task.load(0)
    rows = task.encode(claim.settings.max_samples, 0).examples
    return loaded, task.encoder, rows, task.encode(claim.test_samples, 0, test).examples


class SameBatches(transformers.Trainer):  # type: ignore[misc]  # transformers is not typed
    """transformers' Trainer with our order of samples, so that all sides see the same batches."""

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        lengths = [len(example) for example in self.train_dataset]
        return LengthGroupedSampler(lengths, self.args.per_device_train_batch_size, self.args.seed)


def plainly(
    loaded: LoadedModel,
    kind: TaskKind,
    rows: Sequence[Example],
    layers: Sequence[int],
    claim: Claim,
    trainer_class: type[transformers.Trainer],
) -> Any:
    """Train as PEFT's documentation shows it; model, seconds, peak memory and loss."""
    given = claim.settings
    stack = find_stack(loaded.model)
    config = adapter_config(given, kind, 1)
    assert isinstance(config, LoraConfig)
    targets, start = resolve_targets(loaded.model, stack, layers, config)
    trained = Trained(kind, hidden_size(loaded.model.config), len(layers), stack.num_layers)
    torch.manual_seed(0)
    model = get_peft_model(loaded.model, derive_config(loaded.model, targets, start))
    with tempfile.TemporaryDirectory() as directory:
        arguments = transformers.TrainingArguments(
            output_dir=directory,
            num_train_epochs=given.epochs,
            learning_rate=default_rate(given, trained),
            per_device_train_batch_size=given.batch_size,
            weight_decay=0.0,
            seed=0,
            use_cpu=loaded.model.device.type == "cpu",
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            **({"gradient_checkpointing": True} if given.gradient_checkpointing else {}),
        )
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=list(rows),
            data_collator=lambda batch: labelled_batch(batch, loaded.pad_id, kind),
        )
        started = time.perf_counter()
        with peak_memory(loaded.model.device) as peak:
            outcome = trainer.train()
        return model, time.perf_counter() - started, peak.bytes, float(outcome.training_loss)


def one(name: str, side: str, data: Path) -> dict[str, Any]:
    """One run of one side."""
    claim = CLAIMS[name]
    loaded, encoder, rows, test = load(claim, data)
    stack = find_stack(loaded.model)
    layers = tuple(range(stack.num_layers)) if side.startswith("all") else claim.layers
    if side in PLAIN:
        trainer_class = SameBatches if side.endswith("same batches") else transformers.Trainer
        model, seconds, memory, loss = plainly(loaded, encoder.kind, rows, layers, claim, trainer_class)
    else:
        settings = replace(claim.settings, activation_cache="auto" if side.endswith("cache") else "off")
        if name == "minilm" and not side.endswith("cache"):
            settings = replace(settings, prefix_dropout=True)
        selection = make_selection(loaded.name, loaded.revision, stack, layers, DataRecord(), "benchmark")
        with tempfile.TemporaryDirectory() as directory:
            record = train(
                loaded,
                TrainingData(encoder, rows, DataRecord()),
                selection,
                settings,
                RunOutput(Path(directory) / "run"),
            )
        model, seconds, memory, loss = loaded.model, record.train_seconds, record.peak_memory_bytes, record.train_loss
    score = evaluate(model, encoder, test, loaded.pad_id).metrics
    return {"side": side, "seconds": seconds, "memory": memory, "train_loss": loss, "metrics": score}


def planned(name: str, data: Path) -> dict[str, Any]:
    """What `inspect --plan` says of both choices, the arithmetic floor of the ratio."""
    claim = CLAIMS[name]
    loaded, encoder, rows, _ = load(claim, data)
    stack = find_stack(loaded.model)
    tokens = round(sum(map(len, rows)) / len(rows))
    given = claim.settings
    size = StepSize(encoder.kind, given.batch_size, tokens, checkpointing=given.gradient_checkpointing)
    planner = Planner(loaded.model, stack, adapter_config(given, encoder.kind, 1))
    some = planner.step(claim.layers, size)
    every = planner.step(tuple(range(stack.num_layers)), size)
    return {
        "tokens": tokens,
        "flops": some.flops / every.flops,
        "memory": some.memory_bytes / every.memory_bytes,
        "memory_bytes": {"some": some.memory_bytes, "all": every.memory_bytes},
    }


def main() -> None:
    """Run the sides in turn and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="directory with trec/ and gsm8k/")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(CLAIMS), default=list(CLAIMS))
    parser.add_argument("--one", nargs=2, metavar=("CLAIM", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        claim, side = arguments.one
        print(json.dumps(one(claim, side, arguments.data)))
        return
    for name in arguments.only:
        runs: list[dict[str, dict[str, Any]]] = []
        for _ in range(arguments.runs):
            turn = {}
            for side in (*OURS, *PLAIN):
                process = [sys.executable, __file__, str(arguments.data), "--one", name, side]
                done = subprocess.run(process, check=True, capture_output=True, text=True)
                turn[side] = json.loads(done.stdout.splitlines()[-1])
                print(f"{name}: {side}: {turn[side]['seconds']:.1f} s, {turn[side]['metrics']}", flush=True)
            runs.append(turn)
        ratios = {}
        for side in OURS:
            for reference in PLAIN:
                faster = sorted(turn[reference]["seconds"] / turn[side]["seconds"] for turn in runs)
                ratios[f"{reference} / {side}"] = {
                    "time": statistics.median(faster),
                    "lowest": faster[0],
                    "highest": faster[-1],
                    "memory": statistics.median(turn[reference]["memory"] / turn[side]["memory"] for turn in runs),
                }
        made = {"command": command(), "versions": versions(), "machine": machine()}
        found = {"ratios": ratios, "planned": planned(name, arguments.data), "runs": runs}
        write_json(RESULTS / f"training_cost-{name}.json", {**made, **found})
        print(json.dumps({"ratios": ratios, "planned": found["planned"]}, indent=2))


if __name__ == "__main__":
    main()
