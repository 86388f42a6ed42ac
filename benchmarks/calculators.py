"""Our memory plan beside the calculators that people use, against what trainings held.

    python benchmarks/calculators.py

Twenty-two models made from config classes, with random weights: families, lengths, batches, checkpointing, LoRA on all
layers or the upper half, whole blocks, NF4. Each has a process of its own, which makes the model and takes two steps of
AdamW; what it held is its parameters and the peak above them, as benchmarks/plan_accuracy.py reads it. The others:

- accelerate: `accelerate estimate-memory`'s "training using Adam", by its own function, at the type of the weights;
- LLaMA-Factory: the table "Hardware Requirement" of its README, a parameter: full 16-bit 120 GB for 7B, LoRA 16 GB,
  QLoRA of 4 bits 6 GB (half of the bits of ours where the weights are float32);
- Unsloth: its documentation's table, a parameter: LoRA of 16 bits 19 GB for 7B, QLoRA of 4 bits 5 GB; none for full.

Read: relative error |estimate - held| / held, and the share of estimates that are safe, which is not below what was
held (xMem, 2510.21048). The published tables were made for models of billions of parameters at batches of their own:
on models as small as these they say little of activations. Writes benchmarks/results/calculators.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.commands.estimate import estimate_training_usage

from layersift.adapt.attach import attach
from layersift.adapt.methods import adapter_config
from layersift.config.recipe import TaskKind
from layersift.config.train import TrainSettings
from layersift.files import write_json
from layersift.models.load import base_bytes
from layersift.models.stacks import find_stack
from layersift.plan.memory import Memory
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from layersift.provenance import machine, versions
from layersift.step.counters import peak_memory
from layersift.step.losses import ResponseLoss
from layersift.step.prefix import frozen_prefix
from plan_accuracy import UNSHARED

RESULT = Path(__file__).parent / "results" / "calculators.json"
GB_OF_7B = {  # published, by calculator and way of training
    "LLaMA-Factory": {"full": 120, "lora": 16, "4bit": 6},
    "Unsloth": {"lora": 19, "4bit": 5},
}
VOCABULARY = 8000


@dataclass(frozen=True)
class Case:
    """One training."""

    family: str
    width: int
    layers: int
    batch: int
    tokens: int
    way: str = "lora"  # lora, full or 4bit
    half: bool = False  # the upper half of the layers alone
    checkpointing: bool = False
    linear: bool = True  # all-linear; else PEFT's own choice

    @property
    def kind(self) -> TaskKind:
        """Encoders classify, decoders write."""
        return "classification" if self.family in ("bert", "roberta", "distilbert", "mpnet") else "instruction"

    def config(self) -> Any:
        """Its architecture, by transformers' own class."""
        heads = self.width // 64
        common: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "num_labels": 4}
        sizes: dict[str, Any] = {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * self.width,
            "max_position_embeddings": 1024,
        }
        if self.family == "gpt2":
            sizes = {"n_embd": self.width, "n_layer": self.layers, "n_head": heads, "n_positions": 1024}
        if self.family == "distilbert":
            sizes = {"dim": self.width, "n_layers": self.layers, "n_heads": heads, "hidden_dim": 4 * self.width}
            sizes["max_position_embeddings"] = 1024
        if self.family in ("llama", "mistral", "qwen2", "gemma"):
            sizes |= {"num_key_value_heads": max(1, heads // 2), "head_dim": 64}
        return transformers.AutoConfig.for_model(self.family, **common, **sizes)

    def empty(self) -> Any:
        """The model without weights."""
        with torch.device("meta"):
            return self.auto.from_config(self.config()).float()

    @property
    def auto(self) -> Any:
        """The class that makes it."""
        if self.kind == "classification":
            return transformers.AutoModelForSequenceClassification
        return transformers.AutoModelForCausalLM

    def load(self) -> Any:
        """The model with random weights, packed to 4 bits where it is to be."""
        torch.manual_seed(0)
        plain = self.auto.from_config(self.config()).float()
        if self.way != "4bit":
            return plain
        packing = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        with tempfile.TemporaryDirectory() as place:
            plain.save_pretrained(place)
            return self.auto.from_pretrained(place, quantization_config=packing, device_map="cpu", dtype=torch.float32)

    @property
    def settings(self) -> TrainSettings:
        """How it is trained."""
        if self.way == "full":
            return TrainSettings(method="full")
        return TrainSettings(target_modules="all-linear" if self.linear else None)


def _wide() -> list[Case]:
    encoders = [
        Case("bert", 256, 6, 32, 64),
        Case("bert", 256, 6, 32, 64, half=True),
        Case("bert", 256, 6, 32, 64, "full"),
        Case("bert", 512, 8, 16, 128, linear=False),
        Case("roberta", 384, 6, 64, 64, linear=False),
        Case("roberta", 384, 6, 16, 256, checkpointing=True),
        Case("distilbert", 384, 6, 32, 128),
        Case("mpnet", 256, 6, 16, 128),
    ]
    decoders = [
        Case("gpt2", 256, 8, 8, 128),
        Case("gpt2", 384, 6, 4, 512),
        Case("llama", 256, 8, 8, 128),
        Case("llama", 256, 8, 8, 128, half=True),
        Case("llama", 256, 8, 8, 128, checkpointing=True),
        Case("llama", 512, 8, 4, 256),
        Case("llama", 512, 8, 4, 256, "full"),
        Case("llama", 512, 8, 4, 256, "4bit"),
        Case("llama", 512, 8, 4, 256, "4bit", half=True),
        Case("llama", 512, 8, 2, 512, "4bit", checkpointing=True),
        Case("mistral", 384, 8, 4, 256),
        Case("qwen2", 384, 8, 4, 256, half=True),
        Case("qwen2", 384, 8, 8, 128, "full", half=True),
        Case("gemma", 256, 6, 8, 128),
    ]
    return [*encoders, *decoders]


CASES = _wide()


def planned(case: Case) -> Memory:
    """By our plan, without weights."""
    model = case.empty()
    stack = find_stack(model)
    config = None if case.way == "full" else adapter_config(case.settings, case.kind, 1)
    size = StepSize(case.kind, case.batch, case.tokens, checkpointing=case.checkpointing)
    step = Planner(model, stack, config).step(_chosen(case), size)
    return Memory.of(base_bytes(model, "4bit" if case.way == "4bit" else None), step)


def _chosen(case: Case) -> tuple[int, ...]:
    return tuple(range(case.layers // 2 if case.half else 0, case.layers))


def calculated(case: Case) -> dict[str, float | None]:
    """By each calculator, in bytes; None where it has no figure."""
    model = case.empty()
    numbers = sum(p.numel() for p in model.parameters())
    answers: dict[str, float | None] = {"accelerate": float(estimate_training_usage(4 * numbers, "float32")["step"])}
    for name, table in GB_OF_7B.items():
        of = table.get(case.way)
        wider = 1 if case.way == "4bit" else 2  # float32 here, where the tables have 16 bits
        answers[name] = None if of is None else of * 1e9 / 7e9 * numbers * wider
    return answers


def held(case: Case) -> int:
    """Bytes of the parameters and of the peak above them over two steps."""
    model = case.load()
    base = sum(p.nbytes for p in model.parameters())
    stack = find_stack(model)
    if case.way == "full":
        model.requires_grad_(False)
        blocks = stack.blocks(model)
        for layer in _chosen(case):
            blocks[layer].requires_grad_(True)
        adapted = model.train()
    else:
        adapted = attach(model, stack, _chosen(case), adapter_config(case.settings, case.kind, 1)).train()
    if case.kind == "classification":
        for name, parameter in model.named_parameters():
            if name.startswith(("classifier", "pre_classifier", "score")):
                parameter.requires_grad_(True)
    if case.checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    ids = torch.randint(5, VOCABULARY, (case.batch, case.tokens), generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if case.kind == "classification":
        inputs["labels"] = torch.zeros(case.batch, dtype=torch.long)
    else:
        inputs["labels"] = ids.clone()
        inputs["labels"][:, : case.tokens // 2] = -100

    def loss_of(inputs: dict[str, Any]) -> Any:
        if case.kind == "classification":
            return adapted(**inputs).loss
        return ResponseLoss(head_is_all=True)(adapted, dict(inputs))

    few = {k: v[:2] if v.ndim == 1 else v[:2, case.tokens // 2 - 1 :][:, :4] for k, v in inputs.items()}
    trained = [p for p in adapted.parameters() if p.requires_grad]
    with frozen_prefix(adapted):
        loss_of(few).backward()
        adapted.zero_grad()
        with peak_memory(torch.device("cpu")) as peak:
            optimizer = torch.optim.AdamW(trained)
            for _ in range(2):
                loss_of(inputs).backward()
                optimizer.step()
                optimizer.zero_grad()
    if peak.bytes is None:
        raise SystemExit("the peak of a process is read on Linux only")
    adapters = 0 if case.way == "full" else sum(p.nbytes for p in trained)
    return int(base + adapters + peak.bytes)


def summary(cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each calculator: the relative error and the share of safe estimates, over the cases that it answers."""
    of: dict[str, dict[str, float]] = {}
    for name in cases[0]["estimates"]:
        pairs = [(c["estimates"][name], c["held"]) for c in cases if c["estimates"][name] is not None]
        errors = [abs(estimate - true) / true for estimate, true in pairs]
        of[name] = {
            "answers": len(pairs),
            "median error": round(statistics.median(errors), 4),
            "worst error": round(max(errors), 4),
            "safe": round(sum(estimate >= true for estimate, true in pairs) / len(pairs), 4),
        }
    return of


def table(result: dict[str, Any]) -> str:
    """The summary as Markdown, for docs/costs.md."""
    lines = ["| calculator | answers | median error | worst error | safe |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, of in result["summary"].items():
        figures = (f"{of['median error']:.0%}", f"{of['worst error']:.0%}", f"{of['safe']:.0%}")
        lines.append(f"| {name} | {of['answers']} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Every case, and how far the estimates are off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(held(CASES[arguments.one]))
        return
    cases = []
    for number, case in enumerate(CASES):
        process = [sys.executable, __file__, "--one", str(number)]
        done = subprocess.run(process, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | UNSHARED)
        memory = planned(case)
        ours = {"layersift, expected": memory.expected, "layersift, high": memory.high}
        cases.append({"case": asdict(case), "held": int(done.stdout.split()[-1]), "estimates": ours | calculated(case)})
        print(json.dumps(cases[-1]), flush=True)
    result = {
        "command": "python benchmarks/calculators.py",
        "machine": machine(),
        "versions": versions(),
        "summary": summary(cases),
        "cases": cases,
    }
    write_json(RESULT, result)
    print(table(result))


if __name__ == "__main__":
    main()
