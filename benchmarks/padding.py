"""How much of what a training computes is padding: with batches at random, and with those that layersift makes.

    python benchmarks/padding.py MODEL DATA.jsonl [MODEL DATA.jsonl ...] [--rows 1000] [--batch-size 16]

Rows are encoded as `train` does, with the default length. A batch is padded to its longest row. Packing, or batches by
a budget of tokens, would end at no padding: the last column is the most that they could save. Results:
benchmarks/results/padding.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from layersift.config.recipe import DataSettings, ModelSource
from layersift.files import write_json
from layersift.provenance import made_by
from layersift.task import Task
from layersift.training.trainer import LengthGroupedSampler

RESULT = Path(__file__).resolve().parent / "results" / "padding.json"
EPOCHS = 3


def padding(lengths: Sequence[int], order: Sequence[int], batch_size: int) -> float:
    """The fraction of all tokens of an epoch's batches that are padding."""
    batches = [[lengths[i] for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]
    return 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)


def measure(model: str, data: str, rows: int, batch_size: int) -> dict[str, object]:
    """Mean fractions over three epochs, of some rows of a file."""
    encoded = Task.open(ModelSource(model), DataSettings(data)).encode(rows, 0)
    lengths = [len(example) for example in encoded.examples]
    grouped, plain = [], []
    sampler = LengthGroupedSampler(lengths, batch_size, seed=0)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        grouped.append(padding(lengths, list(sampler), batch_size))
        order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(epoch)).tolist()
        plain.append(padding(lengths, order, batch_size))
    return {
        "model": Path(model).name,
        "data": "/".join(Path(data).parts[-2:]),
        "rows": len(lengths),
        "batch_size": batch_size,
        "tokens": {"mean": sum(lengths) / len(lengths), "longest": max(lengths)},
        "padding": {"at random": sum(plain) / EPOCHS, "as layersift batches": sum(grouped) / EPOCHS},
    }


def main() -> None:
    """Each pair of model and data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_args()
    pairs = zip(given.pairs[::2], given.pairs[1::2], strict=True)
    found = [measure(model, data, given.rows, given.batch_size) for model, data in pairs]
    for one in found:
        print(one["model"], one["data"], one["tokens"], one["padding"])
    write_json(RESULT, {**made_by(), "command": "python benchmarks/padding.py MODEL DATA.jsonl ...", "found": found})


if __name__ == "__main__":
    main()
