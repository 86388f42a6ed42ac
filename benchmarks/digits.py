"""A small vision transformer, trained here from nothing on scikit-learn's handwritten 0 to 4, and pictures of 5 to 9.

No pretrained vision model can be had without the hub, so this one learns five of the ten digits and is then adapted to
the other five. The same weights and files come out each time on one machine; nothing of it is committed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 16  # pixels, of pictures that have 8
SHAPE = {
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
    "num_channels": 3,
}
KNOWN, TESTED = 5, 400  # digits that the model knows; rows of the others to judge by
STEPS, BATCH, RATE = 600, 32, 1e-3


def make_digits(place: Path) -> None:
    """Write ``place/model``, and pictures in a directory a class under ``place/train`` and ``place/test``."""
    digits = load_digits()
    pictures = np.kron(digits.images / 16, np.ones((2, 2)))  # (n, 16, 16) in [0, 1]
    known = digits.target < KNOWN
    _save_model(place / "model", pictures[known], digits.target[known])
    others = np.random.default_rng(0).permutation(np.flatnonzero(~known))
    for name, rows in (("test", others[:TESTED]), ("train", others[TESTED:])):
        for row in rows:
            directory = place / name / str(digits.target[row])
            directory.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * pictures[row]).astype("uint8")).convert("RGB").save(directory / f"{row}.png")


def _save_model(directory: Path, pictures: np.ndarray, labels: np.ndarray) -> None:
    """Train it, on one thread so that it is the same each time, and save it with its image processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SHAPE, num_labels=KNOWN)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    pixels = torch.tensor(2 * pictures - 1, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    targets, generator = torch.tensor(labels), torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        rows = torch.randint(len(pixels), (BATCH,), generator=generator)
        right, down = torch.randint(-1, 2, (2,), generator=generator).tolist()
        moved = pixels[rows].roll((down, right), dims=(2, 3))
        model(pixel_values=moved, labels=targets[rows]).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    processor = transformers.ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(directory)
    torch.set_num_threads(threads)
