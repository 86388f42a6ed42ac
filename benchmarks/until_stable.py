"""Does `--until-stable` keep its word? How often it decides for the wrong layer, on scores whose truth is known.

    python benchmarks/until_stable.py [--runs 600]

Two layers whose true scores differ by a hundredth of one sample's standard deviation, so that hardly any sample could
tell them apart: whenever scoring stops before the last of 128 samples, that is chance, and half of such decisions are
for the wrong layer. Each sample's score is normal, or log-normal (sigma 1) in one layer, as heavy-tailed as gradients.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from layersift.commands.console import Console
from layersift.data.examples import Example
from layersift.files import write_text
from layersift.models.stacks import BlockStack
from layersift.report.tables import markdown
from layersift.represent.read import Representations
from layersift.score.context import Activations, ScoringContext
from layersift.score.registry import CRITERIA
from layersift.score.stability import measure_stability, sample_sizes

SAMPLES, APART = 128, 0.01
CONFIDENCES = (0.95, 0.99, 0.999)
RESULT = Path(__file__).resolve().parent / "results" / "until-stable.md"


def drawn(shape: str, seed: int) -> np.ndarray:
    """Scores (2, n) of one sample each; the first layer's mean is the higher one."""
    rng = np.random.default_rng(seed)
    if shape == "normal":
        return rng.normal(size=(2, SAMPLES)) + np.array([[APART], [0.0]])
    # Most samples lie below the heavy-tailed layer's mean, so that few of them make it look the lower one.
    mean, deviation = np.exp(0.5), np.sqrt((np.e - 1) * np.e)
    return np.stack([np.exp(rng.normal(size=SAMPLES)), rng.normal(mean - APART * deviation, 0.01, SAMPLES)])


def subject_of(values: np.ndarray) -> ScoringContext:
    """A context in which a token by token measure gave ``values``."""
    layers, n = values.shape
    states = tuple(torch.randn(n, 2) for _ in range(layers + 1))
    read = Representations(states, torch.float32, 0.0, 0, {"cosine": torch.from_numpy(values.copy())})
    stack, samples = BlockStack("b", "encoder", layers, ()), (Example((), ()),) * n
    return ScoringContext(None, stack, samples, "text", activations=Activations.holding({"mean": read}))


def wrong(shape: str, runs: int) -> dict[float, float]:
    """Share of the runs that stop early with the wrong layer, by confidence."""
    planned = sample_sizes(SAMPLES)
    found = dict.fromkeys(CONFIDENCES, 0)
    for seed in range(runs):
        values = drawn(shape, seed)
        waiting = set(CONFIDENCES)
        for n in planned[:-1]:
            sure = measure_stability(CRITERIA["cosine"], subject_of(values[:, :n]), 1)
            assert sure is not None
            for confidence in sorted(waiting):
                if sure.decided(1 - (1 - confidence) / len(planned)):
                    waiting.remove(confidence)
                    found[confidence] += int(np.argmax(sure.membership) != 0)
    return {confidence: count / runs for confidence, count in found.items()}


def main() -> None:
    """Print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=600)
    runs = parser.parse_args().runs
    rows = [["a sample's scores", *(f"{confidence:g} asked" for confidence in CONFIDENCES)]]
    for shape in ("normal", "log-normal"):
        rates = wrong(shape, runs)
        rows.append([shape, *(f"{100 * rates[c]:.1f} in 100 wrong" for c in CONFIDENCES)])
    Console().table(rows)
    write_text(RESULT, f"{markdown(rows)}\n{runs} runs each, at most {SAMPLES} samples.\n")


if __name__ == "__main__":
    main()
