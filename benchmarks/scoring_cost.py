"""What does scoring cost? Ours against a bare forward pass, the published script's way, and two other tools' ways.

    python benchmarks/scoring_cost.py MODEL DATA.jsonl [--samples 128] [--probe-samples 16] [--repeat 2] [--json FILE]

MODEL is a decoder (directory, Hub id or .gguf file), DATA.jsonl holds prompts and responses. Each side runs in a
process of its own, in turn, and reports its time and its peak memory above the loaded model (VmHWM - VmRSS, Linux).
All sides but `fast` read the same samples, tokenised as the published script does; all but `fast` in float32.

  ours        `layersift` with --compat paper: one cut-off pass, the samples' shared beginning forwarded once
  bare        the backbone's forward over the same samples in the same batches, nothing read and nothing shared
  published   padded batches of 16 in data order, LM head and loss, output_hidden_states, d x d CKA (written from the
              description in docs/method.md; the script has no licence, so no line of it is here)
  fast        `layersift select --until-stable 0.95` on as many problems at most: everything on, debiased CKA at the
              default position, and bfloat16 where this processor has instructions for it
  pytorch-cka `compute_cka` of the PyPI package of that name on the backbone and itself, padded batches of 16
  probe       Aletheia's gradient probe at its defaults: norms of the gradients of eight blocks' own weights at a time,
              one sample a batch (written from its description in docs/criteria/gradient-norm.md)
  ours, few   `layersift` on as many samples as the probe

The masks of `ours` and `published` must be equal. The arithmetic floor of a pass is its matrix products at the rate
that one large product of the blocks' shape reaches in the same process.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from layersift.config.recipe import ModelSource
from layersift.data.encode import Encoder, encode_sample
from layersift.data.examples import Example, batches_by_tokens, collate
from layersift.data.table import read_table
from layersift.files import write_json
from layersift.models.load import LoadedModel, load_model
from layersift.models.stacks import BlockStack, find_stack
from layersift.provenance import machine, versions
from layersift.represent.read import ON_A_CPU
from layersift.score.context import ScoringContext
from layersift.score.criterion import score_layers
from layersift.score.registry import find_criterion
from layersift.score.stability import until_stable
from layersift.select.published import PUBLISHED, published_choice, published_examples
from layersift.step.counters import peak_memory

PUBLISHED_BATCH = 16
PROBED_BLOCKS = 8
Examples = tuple[Example, ...]


def _mask(chosen: Any, layers: int) -> str:
    return "".join("1" if i in chosen else "0" for i in range(layers))


def _stack(loaded: LoadedModel) -> BlockStack:
    return find_stack(loaded.model)


def ours(loaded: LoadedModel, examples: Examples) -> dict[str, Any]:
    """The mask as `layersift select --compat paper` finds it."""
    stack = _stack(loaded)
    context = ScoringContext(loaded.model, stack, examples, "instruction", "last", loaded.pad_id, post_norm_last=True)
    chosen = published_choice(stack, score_layers(PUBLISHED, context), stack.num_layers // 2)
    return {"mask": _mask(chosen, stack.num_layers)}


def fast(loaded: LoadedModel, examples: Examples) -> dict[str, Any]:
    """The mask of debiased CKA at the mean over the response, reading no more samples than it takes."""
    stack = _stack(loaded)
    context = ScoringContext(loaded.model, stack, examples, "instruction", "response-mean", loaded.pad_id)
    criterion = find_criterion("cka")
    grown, _, stop = until_stable(criterion, context, stack.num_layers // 2)
    chosen = score_layers(criterion, grown).top(stack.num_layers // 2)
    return {
        "mask": _mask(chosen, stack.num_layers),
        "samples": stop.samples,
        "decided": stop.decided,
        "dtype": str(loaded.model.dtype),
    }


def bare(loaded: LoadedModel, examples: Examples) -> dict[str, Any]:
    """A forward pass of the backbone over our batches."""
    with torch.no_grad():
        for batch in batches_by_tokens([len(e) for e in examples], ON_A_CPU):
            loaded.model.base_model(**collate([examples[i] for i in batch], loaded.pad_id), use_cache=False)
    return {"floor": _floor(loaded, examples)}


def _floor(loaded: LoadedModel, examples: Examples) -> float:
    """Seconds that the blocks' matrix products take at the rate of one large product."""
    weights = [p for b in _stack(loaded).blocks(loaded.model) for p in b.parameters() if p.ndim == 2]
    widest = max(weights, key=torch.numel)
    rows = torch.randn(ON_A_CPU, widest.shape[1])
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        torch.nn.functional.linear(rows, widest)
        seconds.append(time.perf_counter() - started)
    rate = 2 * len(rows) * widest.numel() / min(seconds)
    return 2 * sum(p.numel() for p in weights) * sum(map(len, examples)) / rate


def published(loaded: LoadedModel, examples: Examples) -> dict[str, Any]:
    """The mask by the published way of computing."""
    layers = _stack(loaded).num_layers
    kept: list[list[torch.Tensor]] = [[] for _ in range(layers + 1)]
    with torch.no_grad():
        for start in range(0, len(examples), PUBLISHED_BATCH):
            batch = collate(examples[start : start + PUBLISHED_BATCH], loaded.pad_id)
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            output = loaded.model(**batch, labels=labels, output_hidden_states=True)
            last = batch["attention_mask"].sum(dim=1) - 1
            for layer, states in enumerate(output.hidden_states):
                kept[layer].append(states[torch.arange(len(last)), last])
    features = [torch.cat(rows) for rows in kept]
    features = [f - f.mean(dim=0) for f in features]
    similarity = []
    for x, y in itertools.pairwise(features):
        scale = ((x.T @ x).norm() * (y.T @ y).norm()).clamp(min=1e-12)
        similarity.append(float((x.T @ y).norm() ** 2 / scale))
    chosen = sorted(range(layers), key=lambda i: similarity[i])[: layers // 2]
    return {"mask": _mask(chosen, layers)}


def pytorch_cka(loaded: LoadedModel, examples: Examples) -> dict[str, Any]:
    """Similarity of the blocks' outputs by a library for any network; it knows no mask and no token positions."""
    from cka import compute_cka

    stack, backbone = _stack(loaded), loaded.model.base_model
    prefix = stack.path.removeprefix(f"{loaded.model.base_model_prefix}.")
    batches = [
        collate(examples[i : i + PUBLISHED_BATCH], loaded.pad_id)["input_ids"]
        for i in range(0, len(examples), PUBLISHED_BATCH)
    ]
    names = [f"{prefix}.{i}" for i in range(stack.num_layers)]
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list will do
    (matrix,) = compute_cka(backbone, backbone, loader, layers=names, device="cpu", progress=False)
    return {"layers": len(matrix)}


def probe(loaded: LoadedModel, examples: Examples) -> dict[str, Any]:
    """Summed norms of the gradients of every tensor, eight blocks at a time, a backward pass a sample and time."""
    model, blocks = loaded.model.train(), _stack(loaded).blocks(loaded.model)
    scores = [0.0] * len(blocks)
    model.requires_grad_(False)
    for start in range(0, len(blocks), PROBED_BLOCKS):
        chunk = range(start, min(start + PROBED_BLOCKS, len(blocks)))
        for i in chunk:
            blocks[i].requires_grad_(True)
        for example in examples:
            batch = collate([example], loaded.pad_id)
            model(**batch, labels=batch["input_ids"].clone()).loss.backward()
            for i in chunk:
                scores[i] += sum(float(p.grad.norm()) for p in blocks[i].parameters() if p.grad is not None)
            model.zero_grad(set_to_none=True)
        for i in chunk:
            blocks[i].requires_grad_(False)
    chosen = sorted(range(len(blocks)), key=lambda i: -scores[i])[: len(blocks) // 2]
    return {"mask": _mask(chosen, len(blocks))}


SIDES = {
    "ours": ours,
    "bare": bare,
    "published": published,
    "fast": fast,
    "pytorch-cka": pytorch_cka,
    "probe": probe,
    "ours, few": ours,
}
FEW = ("probe", "ours, few")
RATIOS = (  # how many times the first side takes of the second: time, and memory
    ("bare", "ours"),
    ("published", "ours"),
    ("published", "fast"),
    ("pytorch-cka", "ours"),
    ("probe", "ours, few"),
)


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16; those that do not are several times slower in it."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def measure(side: str, model: str, data: str, samples: int) -> dict[str, Any]:
    """Time, memory and outcome of one side, in this process."""
    source = ModelSource(model, device="cpu", dtype="float32")
    if side == "fast" and has_bfloat16():
        source = replace(source, dtype="bfloat16")
    loaded = load_model(source, "instruction")
    table = read_table(data)
    encoder = Encoder(loaded.tokenizer, table.kind)
    # Everything on is what `layersift select` does by default, whose prompts are the model's own.
    as_published = side != "fast"
    examples = (
        published_examples(table, encoder, samples)
        if as_published
        else encode_sample(table, encoder, samples, seed=0).examples
    )
    started = time.perf_counter()
    with peak_memory(torch.device("cpu")) as peak:
        found = SIDES[side](loaded, examples)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": peak.bytes, "tokens": sum(map(len, examples)), **found}


def main() -> None:
    """Run the sides in turn, several times, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--probe-samples", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.model, arguments.data, arguments.samples)))
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(arguments.repeat):
        for side, runs in found.items():
            samples = arguments.probe_samples if side in FEW else arguments.samples
            command = [sys.executable, __file__, arguments.model, arguments.data, "--side", side]
            result = subprocess.run(
                [*command, "--samples", str(samples)], check=True, stdout=subprocess.PIPE, text=True
            )
            runs.append(json.loads(result.stdout.splitlines()[-1]))
            rest = {k: v for k, v in runs[-1].items() if k not in ("seconds", "bytes")}
            print(f"{side:<12} {runs[-1]['seconds']:7.1f} s  {runs[-1]['bytes'] / 1e9:6.2f} GB  {rest}", flush=True)
    masks = {r["mask"] for side in ("ours", "published") for r in found[side]}
    ratios = {}
    for other, own in RATIOS:
        pairs = list(zip(found[other], found[own], strict=True))
        times = [a["seconds"] / b["seconds"] for a, b in pairs]
        ratios[f"{other} / {own}"] = {
            "time": statistics.median(times),
            "lowest": min(times),
            "highest": max(times),
            "memory": statistics.median(a["bytes"] / max(1, b["bytes"]) for a, b in pairs),
        }
        print(f"{other} / {own}: {json.dumps({k: round(v, 3) for k, v in ratios[f'{other} / {own}'].items()})}")
    floor = [b["floor"] / o["seconds"] for b, o in zip(found["bare"], found["ours"], strict=True)]
    print(f"arithmetic floor of the whole pass / ours: {statistics.median(floor):.2f}")
    print(f"masks equal: {len(masks) == 1}")
    if arguments.json:
        shown = " ".join(
            ["python", "benchmarks/scoring_cost.py", Path(arguments.model).name, Path(arguments.data).name]
        )
        made = {"command": shown, "machine": machine(), "versions": versions(), "bfloat16": has_bfloat16()}
        write_json(arguments.json, {**made, "masks_equal": len(masks) == 1, "ratios": ratios, "runs": found})


if __name__ == "__main__":
    main()
