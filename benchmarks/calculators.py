"""What calculators of training memory say, ours among them, against what a training step then holds on this CPU.

    python benchmarks/calculators.py [--only llama-lora bert-lora ...]

Each configuration is a model of random weights, written to a temporary directory and trained for two steps of AdamW in
a process of its own, forked from this one. What is held is the loaded model's tensors and the process's peak above
them, read as in plan_accuracy.py. Measures are those of xMem (arXiv 2510.21048): the relative error, and the share of
answers that are safe, which is not below what was held. The calculators:

- ours: `inspect --plan`, low, expected and high;
- accelerate: `accelerate estimate-memory`, its own functions;
- LLaMA-Factory: the column for x billions of parameters in the table "Hardware Requirement" of its README;
- Unsloth: the formulas of studio/backend/utils/hardware/VRAM_ESTIMATION.md, without its 1.4 GB for CUDA.

The last two count 16-bit weights; here each of their two bytes is as many as a number of the model has. All of them are
for decoders on GPUs: accelerate knows neither LoRA nor a batch, LLaMA-Factory no batch, Unsloth no choice of layers.
OPT is not among the models, since ours refuses to plan it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from layersift.adapt.attach import attach
from layersift.adapt.methods import adapter_config
from layersift.config.recipe import ModelSource, TaskKind
from layersift.config.train import TrainSettings
from layersift.files import write_json
from layersift.models.load import base_bytes, empty_model, quantization_arguments
from layersift.models.stacks import find_stack
from layersift.plan.memory import Memory
from layersift.plan.planner import Planner
from layersift.plan.training import StepSize
from layersift.provenance import made_by
from layersift.step.counters import peak_memory
from layersift.step.losses import ResponseLoss
from layersift.step.prefix import frozen_prefix

RESULT = Path(__file__).resolve().parent / "results" / "calculators.json"
UNSHARED = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_TOP_PAD_": "0",
}
ENCODERS = ("bert", "roberta", "distilbert", "electra")
CLASSES = 4


@dataclass(frozen=True)
class Case:
    """A configuration: a model's sizes, and how it is trained."""

    family: str  # a model_type of transformers
    width: int
    layers: int
    vocabulary: int
    batch: int
    tokens: int
    method: str = "lora"  # or full: the blocks themselves
    half: bool = False  # the last half of the layers; else all
    checkpointing: bool = False
    quantization: str | None = None

    @property
    def kind(self) -> TaskKind:
        """Encoders classify, decoders write."""
        return "classification" if self.family in ENCODERS else "instruction"

    def config(self) -> Any:
        """The model's configuration, by the names that its family has for these sizes."""
        inner = 4 * self.width if self.family in (*ENCODERS, "gpt2", "gpt_neox") else 8 * self.width // 3
        if self.family == "gpt2":
            sizes = {"n_embd": self.width, "n_layer": self.layers, "n_head": self.width // 64}
        elif self.family == "distilbert":
            sizes = {"dim": self.width, "n_layers": self.layers, "n_heads": self.width // 64, "hidden_dim": inner}
        else:
            sizes = {"hidden_size": self.width, "num_hidden_layers": self.layers}
            sizes |= {"num_attention_heads": self.width // 64, "intermediate_size": inner}
        if self.family in ("llama", "qwen2", "mistral", "gemma2"):
            sizes |= {"num_key_value_heads": max(1, self.width // 128)}
        if self.family == "gemma2":
            sizes |= {"head_dim": 64}
        elif self.family == "electra":
            sizes |= {"embedding_size": self.width}
        made = transformers.AutoConfig.for_model(self.family, vocab_size=self.vocabulary, **sizes)
        made.pad_token_id, made.bos_token_id, made.eos_token_id = 0, 1, 2
        made.dtype = "float32"
        if self.kind == "classification":
            made.num_labels, made.problem_type = CLASSES, "single_label_classification"
        return made


CASES = {
    "bert-lora": Case("bert", 384, 6, 8000, 32, 64),
    "bert-lora-half": Case("bert", 384, 6, 8000, 32, 64, half=True),
    "bert-lora-checkpointing": Case("bert", 384, 6, 8000, 32, 128, checkpointing=True),
    "bert-full": Case("bert", 384, 6, 8000, 16, 64, method="full"),
    "bert-4bit": Case("bert", 512, 8, 8000, 16, 64, quantization="4bit"),
    "roberta-lora": Case("roberta", 768, 6, 16000, 8, 128),
    "roberta-full-half": Case("roberta", 512, 6, 16000, 8, 64, method="full", half=True),
    "distilbert-lora": Case("distilbert", 512, 6, 16000, 16, 64),
    "electra-full": Case("electra", 512, 6, 8000, 1, 32, method="full"),
    "llama-lora": Case("llama", 512, 8, 16000, 4, 128),
    "llama-lora-half": Case("llama", 512, 8, 16000, 4, 128, half=True),
    "llama-lora-one-row": Case("llama", 768, 8, 16000, 1, 64),
    "llama-lora-long": Case("llama", 384, 6, 8000, 1, 1024),
    "llama-lora-checkpointing": Case("llama", 512, 8, 16000, 4, 256, checkpointing=True),
    "llama-full": Case("llama", 512, 6, 8000, 2, 64, method="full"),
    "llama-full-one-row": Case("llama", 768, 6, 8000, 1, 32, method="full"),
    "llama-4bit": Case("llama", 768, 8, 16000, 2, 128, quantization="4bit"),
    "llama-4bit-half": Case("llama", 768, 8, 16000, 2, 128, quantization="4bit", half=True),
    "qwen2-lora": Case("qwen2", 512, 6, 32000, 4, 128),
    "qwen2-4bit-checkpointing": Case("qwen2", 768, 6, 16000, 2, 256, quantization="4bit", checkpointing=True),
    "mistral-lora-half": Case("mistral", 512, 8, 16000, 2, 256, half=True),
    "gemma2-lora": Case("gemma2", 512, 6, 32000, 2, 128),
    "gpt2-lora": Case("gpt2", 512, 6, 16000, 4, 128),
    "gpt_neox-full-half": Case("gpt_neox", 512, 6, 16000, 2, 128, method="full", half=True),
}
CALCULATORS = {
    "ours, low": "low",
    "ours": "expected",
    "ours, high": "high",
    "accelerate": "accelerate",
    "LLaMA-Factory": "llama_factory",
    "Unsloth": "unsloth",
}


def accelerate_bytes(model: torch.nn.Module) -> int:
    """What `accelerate estimate-memory` prints as "Training using Adam" of a model in float32."""
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    total, _ = calculate_maximum_sizes(model)
    sizes: dict[str, int] = estimate_training_usage(total, "float32")
    return max(sizes.values())


def llama_factory_bytes(parameters: int, case: Case) -> int:
    """The table's bytes a parameter: 18 of full training in mixed precision, 2 of LoRA in 16 bits, 1/2 of QLoRA."""
    if case.method == "full":
        return 18 * parameters
    return parameters // 2 if case.quantization == "4bit" else 2 * 2 * parameters  # of float32


def unsloth_bytes(config: Any, case: Case, rank: int, width: int = 4) -> int:
    """Sections 1 to 6 of the document, for a dense model whose numbers have ``width`` bytes."""
    hidden, inner, rows = config.hidden_size, getattr(config, "intermediate_size", None), case.batch * case.tokens
    inner = inner or getattr(config, "hidden_dim", None) or 4 * hidden
    heads = config.num_attention_heads
    shared = hidden // heads * (getattr(config, "num_key_value_heads", None) or heads)
    blocks = case.layers * ((2 * hidden + 2 * shared) * hidden + 3 * hidden * inner)
    tied = getattr(config, "tie_word_embeddings", True)
    beside = 2 * hidden * case.layers + config.vocab_size * hidden * (1 if tied else 2)
    weights = width * beside + (blocks * 2 / 3.2 if case.quantization == "4bit" else width * blocks)
    full = case.method == "full"
    # r (H + H) of q and of o, r (H + K) of k and of v, r (H + M) of each of the three of the MLP
    adapters = case.layers * rank * (4 * hidden + 2 * (hidden + shared) + 3 * (hidden + inner))
    trained = blocks + beside if full else adapters
    activations = width * 1.25 * rows * (hidden + 2 * shared + 2 + 2 * inner)
    activations *= (2.0 if full else 1.0) if case.checkpointing else case.layers
    optimizer = 6 * trained * width / 2
    floor = 0.15 * weights if full else min(0.15 * weights, max(activations, optimizer))
    gradients = max(width * trained, floor)
    return int(weights + (0 if full else width * trained) + optimizer + gradients + activations)


def measure(name: str, directory: Path) -> dict[str, Any]:
    """Every estimate of one configuration, and what was held, in bytes."""
    case, settings = CASES[name], TrainSettings(rank=8, target_modules="all-linear")
    settings = TrainSettings(method="full") if case.method == "full" else settings
    config = case.config()
    auto = transformers.AutoModelForCausalLM
    if case.kind == "classification":
        auto = transformers.AutoModelForSequenceClassification
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(directory)
    source = ModelSource(str(directory), device="cpu", quantization=case.quantization)
    empty = empty_model(source, case.kind, CLASSES)
    stack, adapters = find_stack(empty), adapter_config(settings, case.kind, 1)
    layers = tuple(range(case.layers // 2 if case.half else 0, case.layers))
    size = StepSize(case.kind, case.batch, case.tokens, checkpointing=case.checkpointing)
    planned = Memory.of(base_bytes(empty, case.quantization), Planner(empty, stack, adapters).step(layers, size))
    estimates = {
        **{bound: getattr(planned, bound) for bound in ("low", "expected", "high")},
        "accelerate": accelerate_bytes(empty),
        "llama_factory": llama_factory_bytes(sum(p.numel() for p in empty.parameters()), case),
        "unsloth": unsloth_bytes(config, case, 8),
    }
    asked = quantization_arguments(source, config, torch.device("cpu"), lambda: empty_model(source, case.kind, CLASSES))
    model = auto.from_pretrained(directory, dtype=torch.float32, **asked)
    for weight in model.parameters():  # of files, whose pages would be counted once they are read
        weight.data = weight.data.clone()
    return {"name": name, **asdict(case), "estimates": estimates, "held": held_bytes(model, case, adapters, layers)}


def held_bytes(model: Any, case: Case, adapters: Any, layers: tuple[int, ...]) -> int:
    """The loaded model's tensors, and the most that the process holds above them in two steps of a training."""
    base = tensor_bytes(model)
    stack = find_stack(model)
    if adapters is None:
        model.requires_grad_(False)
        for layer in layers:
            model.get_submodule(stack.block_path(layer)).requires_grad_(True)
    adapted = (model if adapters is None else attach(model, stack, layers, adapters)).train()
    if case.kind == "classification":
        model.classifier.requires_grad_(True)
    if case.checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, case.vocabulary, (case.batch, case.tokens), generator=generator)
    labels = torch.zeros(case.batch, dtype=torch.long)
    if case.kind == "instruction":
        labels = ids.clone()
        labels[:, : case.tokens // 2] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    few = {key: value[:1] if value.ndim == 1 else value[:1, -4:] for key, value in inputs.items()}

    def loss_of(inputs: dict[str, Any]) -> torch.Tensor:
        if case.kind == "classification":
            loss: torch.Tensor = adapted(**inputs).loss
            return loss
        return ResponseLoss(head_is_all=True)(adapted, dict(inputs))

    trained = [p for p in adapted.parameters() if p.requires_grad]
    with frozen_prefix(adapted):
        loss_of(few).backward()  # type: ignore[no-untyped-call]
        adapted.zero_grad()
        with peak_memory(torch.device("cpu")) as peak:
            optimizer = torch.optim.AdamW(trained)
            for _ in range(2):
                loss_of(inputs).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
    if peak.bytes is None:
        raise SystemExit("this system does not tell a process's peak; Linux does")
    attached: int = sum(p.nbytes for p in trained if adapters is not None)
    return base + attached + peak.bytes


def tensor_bytes(model: torch.nn.Module) -> int:
    """Bytes of a loaded model's parameters, and of the scales of those that are packed."""
    weights = list(model.parameters())
    states = [state for weight in weights if (state := getattr(weight, "quant_state", None)) is not None]
    found: int = sum(weight.nbytes for weight in weights) + sum(state.absmax.nbytes for state in states)
    return found


def summarise(cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each calculator: the median and the largest relative error, and the share of safe answers."""
    found = {}
    for name, key in CALCULATORS.items():
        errors = [abs(case["estimates"][key] / case["held"] - 1) for case in cases]
        safe = [case["estimates"][key] >= case["held"] for case in cases]
        found[name] = {"median": statistics.median(errors), "worst": max(errors), "safe": sum(safe) / len(safe)}
    return found


def main() -> None:
    """Every configuration in a process of its own, and what each calculator is worth over all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args()
    if not UNSHARED.items() <= os.environ.items():  # malloc reads them when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | UNSHARED)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cases = []
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as directory, multiprocessing.get_context("fork").Pool(1) as apart:
            cases.append(apart.apply(measure, (name, Path(directory))))
        held = cases[-1]["held"]
        told = "  ".join(f"{key} {cases[-1]['estimates'][key] / held:.2f}" for key in CALCULATORS.values())
        print(f"{name:<26} {held / 1e6:>7,.0f} MB  {told}", flush=True)
    summary = summarise(cases)
    for name, measures in summary.items():
        print(f"{name:<14} median {measures['median']:.1%}, worst {measures['worst']:.1%}, safe {measures['safe']:.0%}")
    if arguments.only == list(CASES):
        write_json(RESULT, {**made_by(), "summary": summary, "cases": cases})


if __name__ == "__main__":
    main()
