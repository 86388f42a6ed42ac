"""Forty lines of PEFT without layersift: what a default answer has to be held against.

    python benchmarks/plain_peft.py MODEL TRAIN TEST [--rate 3e-3] [--epochs 3] [--seed 0]

TRAIN and TEST hold lines with `sentence` or `text`, and `label`. LoRA of rank 8 and alpha 16 on query and value of
every layer, AdamW with linear decay, batches of 16. Prints one line of JSON: accuracy and seconds of training.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH = 16


def rows_of(path: Path) -> list[tuple[str, Any]]:
    """Text and label of each row."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row.get("sentence") or row["text"], row["label"]) for row in rows]


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train", "test"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    train, test = rows_of(given.train), rows_of(given.test)
    classes = sorted({label for _, label in train})
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    base = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=len(classes))
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=given.rate, weight_decay=0.0)
    steps = given.epochs * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    began = time.perf_counter()
    model.train()
    for epoch in range(given.epochs):
        random.Random(f"{given.seed} {epoch}").shuffle(train)
        for start in range(0, len(train), BATCH):
            texts, labels = zip(*train[start : start + BATCH], strict=True)
            inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            model(**inputs, labels=torch.tensor([classes.index(label) for label in labels])).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    seconds = time.perf_counter() - began
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(test), BATCH):
            texts, labels = zip(*test[start : start + BATCH], strict=True)
            inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            right += sum(
                classes[i] == label for i, label in zip(model(**inputs).logits.argmax(-1), labels, strict=True)
            )
    told = {"rate": given.rate, "epochs": given.epochs, "seed": given.seed, "rows": len(train)}
    print(json.dumps({**told, "accuracy": right / len(test), "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
