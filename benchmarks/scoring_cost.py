"""What does selecting cost? Ours against a bare forward pass of the backbone and against the published script's way.

    python benchmarks/scoring_cost.py MODEL DATA.jsonl [--samples 128] [--repeat 3] [--json FILE]

MODEL is a decoder (directory, Hub id or .gguf file), DATA.jsonl holds prompts and responses. Each side runs in a
process of its own, in turn, and reports its time and its peak memory above the loaded model (VmHWM - VmRSS, Linux).
All sides read the same samples, tokenised as the published script does, in float32.

  ours        `layersift` with --compat paper: hooks on the backbone's blocks, batches of equal token budget
  bare        the backbone's forward over the very same batches, nothing read
  published   padded batches of 16 in data order, LM head and loss, output_hidden_states, d x d CKA (written from the
              description in docs/method.md; the script has no licence, so no line of it is here)

The masks of `ours` and `published` must be equal.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from layersift.files import write_json
from layersift.load.blocks import choose_stack, find_stacks
from layersift.load.data import read_table
from layersift.load.encode import Encoder
from layersift.load.examples import Example, batches_by_tokens, collate
from layersift.load.models import LoadedModel, ModelSource, load_model
from layersift.provenance import machine, versions
from layersift.represent.budget import ON_A_CPU as TOKEN_BUDGET
from layersift.score.subject import Subject, score_layers
from layersift.select.paper import PUBLISHED, published_choice, published_examples
from layersift.train.memory import peak_memory

PUBLISHED_BATCH = 16


def ours(loaded: LoadedModel, examples: tuple[Example, ...]) -> str:
    """The mask as `layersift select --compat paper` finds it."""
    stack = choose_stack(find_stacks(loaded.model))
    subject = Subject(loaded.model, stack, examples, "instruction", "last", loaded.pad_id, post_norm_last=True)
    chosen = published_choice(stack, score_layers(PUBLISHED, subject), stack.num_layers // 2)
    return "".join("1" if i in chosen else "0" for i in range(stack.num_layers))


def bare(loaded: LoadedModel, examples: tuple[Example, ...]) -> str:
    """A forward pass of the backbone over our batches."""
    with torch.no_grad():
        for batch in batches_by_tokens([len(e) for e in examples], TOKEN_BUDGET):
            loaded.model.base_model(**collate([examples[i] for i in batch], loaded.pad_id), use_cache=False)
    return ""


def published(loaded: LoadedModel, examples: tuple[Example, ...]) -> str:
    """The mask by the published way of computing."""
    layers = choose_stack(find_stacks(loaded.model)).num_layers
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
    return "".join("1" if i in chosen else "0" for i in range(layers))


SIDES = {"ours": ours, "bare": bare, "published": published}


def measure(side: str, model: str, data: str, samples: int) -> dict[str, Any]:
    """Time, memory and mask of one side, in this process."""
    loaded = load_model(ModelSource(model, device="cpu", dtype="float32"), "instruction")
    table = read_table(data)
    examples = published_examples(table, Encoder(loaded.tokenizer, table.kind), samples)
    started = time.perf_counter()
    with peak_memory(torch.device("cpu")) as peak:
        mask = SIDES[side](loaded, examples)
    return {"seconds": time.perf_counter() - started, "bytes": peak.bytes, "mask": mask}


def main() -> None:
    """Run the sides in turn, several times, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.model, arguments.data, arguments.samples)))
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(arguments.repeat):
        for side, runs in found.items():
            command = [sys.executable, __file__, arguments.model, arguments.data, "--side", side]
            command += ["--samples", str(arguments.samples)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(result.stdout.splitlines()[-1]))
            print(f"{side:<10} {runs[-1]['seconds']:7.1f} s  {runs[-1]['bytes'] / 1e9:6.2f} GB  {runs[-1]['mask']}")
    seconds = {side: [r["seconds"] for r in runs] for side, runs in found.items()}
    memory = {side: max(r["bytes"] for r in runs) for side, runs in found.items()}
    masks = {r["mask"] for side in ("ours", "published") for r in found[side]}
    ratios = {
        "time / bare forward": [a / b for a, b in zip(seconds["ours"], seconds["bare"], strict=True)],
        "time / published": [a / b for a, b in zip(seconds["ours"], seconds["published"], strict=True)],
    }
    for name, values in ratios.items():
        print(f"{name:<22} median {statistics.median(values):.3f}, from {min(values):.3f} to {max(values):.3f}")
    print(f"{'memory / published':<22} {memory['ours'] / memory['published']:.3f}")
    print(f"masks equal: {len(masks) == 1}")
    if arguments.json:
        made = {"command": " ".join(sys.argv), "machine": machine(), "versions": versions()}
        write_json(arguments.json, {**made, "runs": found, "ratios": ratios})


if __name__ == "__main__":
    main()
