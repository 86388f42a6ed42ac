"""The paper's models at their size with random weights, on a GPU: what scoring and a training step cost there.

    python benchmarks/paper_size.py [--model llama-2-7b gemma-7b] [--repeat 3]

The cost does not depend on the weights' values, so they are drawn at random. bfloat16; scoring reads 128 samples of 512
tokens; training has LoRA of rank 128 on seven projections, batches of one sample of 512 tokens, four accumulated, with
gradient checkpointing. Sides run in turn in this process, several times; ratios are of medians, and the floor is the
matrix products of a pass at the rate that one large product reaches. Without a GPU the same runs at small size in
float32, to see that it works; figures of that size say nothing.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

from layersift.adapt.targets import derive_config, resolve_targets
from layersift.data.examples import Example
from layersift.files import write_json
from layersift.models.stacks import BlockStack, find_stack
from layersift.provenance import machine, versions
from layersift.represent.positions import get_position
from layersift.represent.read import represent
from layersift.score.context import ScoringContext
from layersift.score.criterion import score_layers
from layersift.score.registry import find_criterion
from layersift.step.counters import peak_memory
from layersift.step.losses import ResponseLoss
from layersift.step.prefix import frozen_prefix

RESULTS = Path(__file__).parent / "results"
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SHAPES: dict[str, Callable[..., Any]] = {
    "llama-2-7b": lambda **small: transformers.LlamaConfig(**small),  # the class's defaults are LLaMA-2-7B's
    "gemma-7b": lambda **small: transformers.GemmaConfig(**small),
}
SMALL = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 2000,
}
SAMPLES, TOKENS, RANK, ACCUMULATED = (128, 512, 128, 4) if GPU else (16, 64, 8, 2)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def built(name: str) -> Any:
    """The model with random weights, on the device."""
    torch.manual_seed(0)
    config = SHAPES[name](**({} if GPU else SMALL))
    with torch.device(DEVICE):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if GPU else torch.float32)


def examples(vocabulary: int) -> tuple[Example, ...]:
    """Random tokens, the second half of which is the response."""
    ids = torch.randint(10, vocabulary, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
    response = tuple(i >= TOKENS // 2 for i in range(TOKENS))
    return tuple(Example(tuple(row), (True,) * TOKENS, response) for row in ids.tolist())


def scoring(model: Any, stack: BlockStack, rows: tuple[Example, ...]) -> dict[str, Callable[[], Any]]:
    """The sides of scoring."""
    ids = torch.tensor([row.input_ids for row in rows], device=DEVICE)

    def ours() -> None:
        score_layers(find_criterion("cka"), ScoringContext(model, stack, rows, "instruction", "last"))

    def bare() -> None:
        with torch.no_grad():
            for batch in ids.split(32):
                model.base_model(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False)

    def published() -> None:
        kept = []
        with torch.no_grad():
            for batch in ids.split(16):
                output = model(input_ids=batch, labels=batch, output_hidden_states=True)
                kept.append([states[:, -1].float().cpu() for states in output.hidden_states])
        layers = [torch.cat(column) for column in zip(*kept, strict=True)]
        layers = [layer - layer.mean(dim=0) for layer in layers]
        for x, y in itertools.pairwise(layers):
            float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))

    represent(model, stack, rows[:2], get_position("last"))  # loads the kernels
    return {"ours": ours, "bare": bare, "published": published}


def adapted(name: str, layers: range | None) -> Any:
    """The model with LoRA on some layers, or by PEFT alone on all of them, checkpointing on."""
    model = built(name)
    stack = find_stack(model)
    targets, start = resolve_targets(
        model, stack, layers or range(stack.num_layers), LoraConfig(r=RANK, target_modules=PROJECTIONS)
    )
    model = get_peft_model(model, derive_config(model, targets, start))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    return model.train()


def step(model: Any, ids: torch.Tensor, optimizer: torch.optim.Optimizer, ours: bool) -> None:
    """One optimizer step of accumulated batches of one sample."""
    loss_of = ResponseLoss(head_is_all=True)
    for row in ids.split(1):
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.clone()}
        inputs["labels"][:, : TOKENS // 2] = -100
        (loss_of(model, inputs) if ours else model(**inputs).loss).backward()
    optimizer.step()
    optimizer.zero_grad()


def steps(count: int, model: Any, ids: torch.Tensor, optimizer: torch.optim.Optimizer, ours: bool) -> None:
    """Several optimizer steps."""
    for _ in range(count):
        step(model, ids, optimizer, ours)


def training(name: str, repeat: int) -> dict[str, list[dict[str, float]]]:
    """Seconds, memory and tokens per second of a step of every side."""
    layers = find_stack(built(name)).num_layers
    upper = range(layers // 2, layers)
    sides = {"upper half": (upper, True), "all, plain": (None, False), "layers_to_transform, plain": (upper, False)}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(repeat):
        for side, (chosen, ours) in sides.items():
            gc.collect()
            if GPU:
                torch.cuda.empty_cache()
            model = adapted(name, chosen)
            ids = torch.randint(10, model.config.vocab_size, (ACCUMULATED, TOKENS), device=DEVICE)
            with frozen_prefix(model) if ours else nullcontext():
                with peak_memory(DEVICE) as peak:  # of two steps: the first makes the optimizer's state
                    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
                    steps(2, model, ids, optimizer, ours)
                seconds = timed(partial(steps, 3, model, ids, optimizer, ours)) / 3
            found[side].append(
                {"seconds": seconds, "bytes": peak.bytes or 0, "tokens_per_second": ids.numel() / seconds}
            )
            print(f"{name}: {side}: {found[side][-1]}", flush=True)
            del model, optimizer
    return found


def timed(work: Callable[[], Any]) -> float:
    """Seconds until the device is through with it."""
    if GPU:
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def floor(model: Any, stack: BlockStack) -> float:
    """Seconds of the blocks' matrix products over the sample, at the rate of one large product."""
    weights = [p for b in stack.blocks(model) for p in b.parameters() if p.ndim == 2]
    widest = max(weights, key=torch.numel)
    rows = torch.randn(8192, widest.shape[1], device=DEVICE, dtype=widest.dtype)
    seconds = min(timed(lambda: torch.nn.functional.linear(rows, widest)) for _ in range(20))
    return 2 * sum(p.numel() for p in weights) * SAMPLES * TOKENS / (2 * len(rows) * widest.numel() / seconds)


def main() -> None:
    """Both models, both kinds of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.model:
        model = built(name).eval()
        stack = find_stack(model)
        runs: dict[str, list[dict[str, float]]] = {}
        sides = scoring(model, stack, examples(model.config.vocab_size))
        for _ in range(arguments.repeat):
            for side, work in sides.items():
                with peak_memory(DEVICE) as peak:
                    seconds = timed(work)
                runs.setdefault(side, []).append({"seconds": seconds, "bytes": peak.bytes or 0})
                print(f"{name}: scoring, {side}: {runs[side][-1]}", flush=True)
        lowest = floor(model, stack)
        del model, sides
        trained = training(name, arguments.repeat)

        def middle(found: dict[str, list[dict[str, float]]], side: str, what: str) -> float:
            return statistics.median(run[what] for run in found[side])

        ratios = {
            f"{other} / {own}": {what: middle(of, other, what) / middle(of, own, what) for what in ("seconds", "bytes")}
            for of, own, others in (
                (runs, "ours", ("bare", "published")),
                (trained, "upper half", ("all, plain", "layers_to_transform, plain")),
            )
            for other in others
        }
        print(json.dumps(ratios, indent=2))
        if GPU:
            made = {"command": "python benchmarks/paper_size.py", "machine": machine(), "versions": versions()}
            found = {"scoring": runs, "scoring_floor_seconds": lowest, "training": trained, "ratios": ratios}
            write_json(RESULTS / f"paper_size-{name}.json", {**made, **found})


if __name__ == "__main__":
    main()
