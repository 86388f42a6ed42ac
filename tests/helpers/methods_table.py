"""Put every method on two layers of a tiny LLaMA, train it, and see what moved; `docs/methods.md` is made of it.

PYTHONPATH=src:tests:tests/helpers python tests/helpers/methods_table.py
"""

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from layersift.adapt import store
from layersift.adapt.methods import VARIANTS, find_method, make_config, peft_types
from layersift.config.train import FULL
from layersift.errors import AdapterError
from layersift.models.stacks import find_stack
from tiny import tiny

NAMES = [FULL, *VARIANTS, *sorted(set(peft_types()) - {"lora"})]
OPTIONS = {  # sizes that fit matrices of 32 x 32, and what a method cannot do without
    "adalora": {"total_step": 10},
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 50},
    "road": {"group_size": 8},
    "vblora": {"vector_length": 8},
    "waveft": {"n_frequency": 50},
}
LAYERS = (1, 3)
TABLE = Path(__file__).parents[2] / "docs" / "methods.md"


def config(name, **options):
    return make_config(
        name,
        rank=4,
        alpha=8,
        dropout=0.0,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        options=OPTIONS.get(name, {}) | options,
    )


@dataclass
class Seen:
    """What became of one method."""

    parameters: int  # trained
    losses: list[float]
    moved: set[int | None]  # layers whose base weights changed; None: something outside of the layers
    started_elsewhere: bool  # the base weights of the selected layers were changed before training
    reloaded: float  # largest difference of the outputs after saving and loading
    merged: float | None  # the same after merging; None where it cannot be merged


def exercise(name, directory):
    """Attach, train three steps, save, load, merge."""
    model = tiny("llama")
    before = {n: p.clone() for n, p in model.named_parameters()}
    ids = torch.randint(3, 100, (4, 12), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}] if name == "eva" else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = None if name == FULL else config(name)
        adapted = store.adapt(model, find_stack(model), LAYERS, given, with_head=False, batches=batches).train()
        started = changed(adapted, before)
        trained = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        losses = []
        for _ in range(3):
            loss = adapted(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
        adapted.eval()
        with torch.no_grad():
            expected = adapted(input_ids=ids).logits
            store.save(adapted, directory)
            again = store.load(tiny("llama"), name, directory).eval()
            reloaded = float((again(input_ids=ids).logits - expected).abs().max())
            moved = changed(adapted, before)
            try:
                merged = float((store.merged(adapted)(input_ids=ids).logits - expected).abs().max())
            except (NotImplementedError, AttributeError, ValueError, TypeError):
                merged = None
    return Seen(sum(p.numel() for p in trained), losses, moved, bool(started), reloaded, merged)


def changed(adapted, before):
    """Layers whose weights are no longer the model's own; None stands for all that is in no layer."""
    base = (
        getattr(getattr(adapted, "base_model", None), "model", adapted) if hasattr(adapted, "peft_config") else adapted
    )
    after = {n.replace(".base_layer", ""): p for n, p in base.named_parameters()}
    found = set()
    for name, value in before.items():
        if not torch.equal(after[name], value):
            parts = name.split(".")
            found.add(int(parts[2]) if parts[1] == "layers" else None)
    return found


HEAD = """# Adapter methods

`--method NAME` on `layersift train`, `train: {method: NAME}` in a recipe. The selection decides on the layers, the
method on what is put there. `--method-option key=value` (`method_options: {key: value}`) sets any further field of the
method's PEFT config.

`--rank`, `--alpha` and `--dropout` reach the methods that have such a thing. Methods in which a
rank means something else (VeRA, RandLoRA, OFT, VB-LoRA) keep PEFT's default unless `--method-option r=` says otherwise.
Types that do not adapt chosen layers (prompts, trainable tokens, Poly, X-LoRA, Shadow) are refused.

`--rank-of WHAT=RANK` (`ranks: {WHAT: RANK}`) gives some modules another rank, at the same alpha / rank. WHAT is
`attention`, `mlp` (all that is not attention), a module's name such as `down_proj`, or a layer's index; where several
fit, the last counts. It needs LoRA, a variant of it, or a method whose config has a `rank_pattern`.

In Python, hand `selection.attach` or `selection.peft_config` the PEFT config itself (and `attach` the batches, for
EVA). A 4-bit base is loaded by `--quantization 4bit`, or from Python by the caller.

## What was tried

Each method on query and value of layers 1 and 3 of a tiny random LLaMA (4 layers of width 32; `full` trains the two
blocks), three steps. "base moved": layers whose own weights differ afterwards. "loaded" and "merged": the largest
difference of the outputs after saving and loading, and after merging. Made by `tests/helpers/methods_table.py`, which
`tests/adapt/test_methods.py` runs, with PEFT {peft} and torch {torch}.

| method | PEFT type | what it is | trained | base moved | loaded | merged |
| --- | --- | --- | ---: | --- | ---: | ---: |
"""


def main():
    from importlib.metadata import version

    lines = [HEAD.replace("{peft}", version("peft")).replace("{torch}", version("torch"))]
    for name in NAMES:
        kind = "-" if name == FULL else find_method(name).peft_type
        summary = "the blocks themselves" if name == FULL else find_method(name).summary
        try:
            with tempfile.TemporaryDirectory() as directory:
                seen = exercise(name, Path(directory))
        except AdapterError as error:
            lines.append(f"| `{name}` | {kind} | {summary}; not tried: {error} | | | | |\n")
            continue
        moved = ", ".join(map(str, sorted(seen.moved, key=str))) or "none"
        merged = "not possible" if seen.merged is None else f"{seen.merged:.0e}"
        lines.append(
            f"| `{name}` | {kind} | {summary} | {seen.parameters:,} | {moved} | {seen.reloaded:.0e} | {merged} |\n"
        )
    TABLE.write_text("".join(lines))


if __name__ == "__main__":
    main()
