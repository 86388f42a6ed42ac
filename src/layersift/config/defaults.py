"""What a training does where its settings say nothing: learning rate and target modules by model, task and layers.

The rules were measured on MiniLM, MPNet, SmolLM2 and Gemma 3 by ``benchmarks/default_rates.py``; beyond their sizes
they are an extrapolation. docs/learning-rates.md has the tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from layersift.config.data import TaskKind
from layersift.config.train import FULL, TrainSettings

# Peak rate times hidden size, for LoRA of rank 8 and alpha 16 on all layers.
RATE_TIMES_WIDTH: dict[TaskKind, float] = {"classification": 1.15, "regression": 1.15, "instruction": 1.6, "text": 1.6}
FEWER_LAYERS = 0.5  # the rate grows with (all layers / adapted layers) to this power
RANK, SCALE = 8, 2.0  # of the adapters that RATE_TIMES_WIDTH is for
WIDEST_CORRECTION = 2.0  # by rank and scale, up or down: the range that was measured
FULL_TUNING = 0.1  # of LoRA's rate, for training the blocks themselves
USUAL_WIDTH = 768  # where a configuration does not say


@dataclass(frozen=True)
class Trained:
    """What the defaults depend on: the task, the model's hidden size, and how many of its layers are trained."""

    kind: TaskKind
    width: int
    layers: int
    num_layers: int


def default_rate(settings: TrainSettings, trained: Trained) -> float:
    """The peak learning rate of a training whose settings name none, to two digits.

    rate = c / width x sqrt(all layers / adapted layers) x (2 sqrt 8) / (scale sqrt rank)

    Source: the product of scale and root of the rank is kept after 2602.06204, the fall with width after the grids of
    docs/learning-rates.md; at 4,096 wide it meets the 2e-4 that QLoRA (2305.14314) uses for 7B within a factor of 1.5.
    """
    rate = RATE_TIMES_WIDTH[trained.kind] / trained.width
    rate *= (trained.num_layers / trained.layers) ** FEWER_LAYERS
    if settings.method == FULL:
        rate *= FULL_TUNING
    else:
        by_root = settings.method == "rslora" or settings.method_options.get("use_rslora")
        scale = settings.alpha / (math.sqrt(settings.rank) if by_root else settings.rank)
        correction = SCALE * math.sqrt(RANK) / (scale * math.sqrt(settings.rank))
        rate *= min(WIDEST_CORRECTION, max(1 / WIDEST_CORRECTION, correction))
    return float(f"{rate:.2g}")


def with_defaults(settings: TrainSettings, trained: Trained) -> TrainSettings:
    """The settings with every value named, as a run records them and an advice writes them."""
    if settings.learning_rate is not None:
        return settings
    return replace(settings, learning_rate=default_rate(settings, trained))


def hidden_size(config: object) -> int:
    """The width of a model's hidden states, by its configuration; of several parts the text's."""
    own = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("hidden_size", "d_model", "dim", "n_embd", "embed_dim"):
        size = getattr(own, name, None)
        if isinstance(size, int) and size > 0:
            return size
    return USUAL_WIDTH
