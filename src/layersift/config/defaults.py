"""What a training does where its settings say nothing: learning rate and target modules by model, task and layers.

The rules were measured on MiniLM, MPNet, SmolLM2 and Gemma 3 by ``benchmarks/default_rates.py``; beyond their sizes
they are an extrapolation. docs/learning-rates.md has the tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from layersift.config.recipe import TaskKind
from layersift.config.train import FULL, TrainSettings

# Peak rate of LoRA with rank 8 and alpha 16 on all layers of a model of that hidden size.
RATE, WIDTH = 3.9e-3, 384
WIDER = 1.2  # the rate falls with the hidden size to this power
FEWER_LAYERS = 0.75  # the rate grows with (all layers / adapted layers) to this power,
FEWEST_LAYERS = 0.25  # down to this fraction of the layers
RANK, SCALE = 8, 2.0  # of the adapters that RATE is for
LOWEST_CORRECTION = 0.5  # by a larger rank or scale; a smaller one does not raise the rate
FULL_TUNING = 0.1  # of LoRA's rate, for training the blocks themselves
EPOCHS, FEWEST_STEPS, MOST_EPOCHS = (
    3.0,
    200,
    20.0,
)  # of a classification or a regression, which few rows would end early
RULE = f"{RATE:g} ({WIDTH} / width)^{WIDER:g} (all / adapted layers)^{FEWER_LAYERS:g}"
USUAL_WIDTH = 768  # where a configuration does not say
LORA_FAMILY = ("lora", "pissa", "olora", "dora", "rslora", "eva", "loftq")  # which can adapt every linear layer


@dataclass(frozen=True)
class Trained:
    """What the defaults depend on: the task, the model's hidden size, and how many of its layers are trained."""

    kind: TaskKind
    width: int
    layers: int
    num_layers: int


def fill_epochs(settings: TrainSettings, kind: TaskKind, rows: int) -> TrainSettings:
    """The settings with their epochs named: three, or as many as make 200 optimizer steps, at most twenty.

    Text is trained for three, however few its rows: a model that writes learns them by heart.
    """
    if settings.epochs is not None:
        return settings
    epochs = EPOCHS
    if kind in ("classification", "regression"):
        an_epoch = replace(settings, epochs=1.0).steps(rows)
        epochs = min(MOST_EPOCHS, max(EPOCHS, math.ceil(FEWEST_STEPS / max(1, an_epoch))))
    return replace(settings, epochs=float(epochs))


def default_rate(settings: TrainSettings, trained: Trained) -> float:
    """The peak learning rate of a training whose settings name none, to two digits.

    rate = 0.0039 (384 / width)^1.2 (all layers / adapted layers)^0.75 min(1, 2 sqrt 8 / (scale sqrt rank))

    A sparser choice than a quarter of the layers has the rate of a quarter, and a narrower model than 384, of which
    nothing was measured, that of 384; a high rank or scale at most halves it.

    Source: the power of the layers and the level from the grids of docs/learning-rates.md; the product of scale and
    root of the rank is kept after 2602.06204. With LoRA+ the rate is A's, and B's lies above it by its ratio; the rule
    names their geometric mean. At a width of 4,096 the rule gives 2.3e-4 and at 8,192 1e-4, where QLoRA
    (2305.14314) uses 2e-4 for 7B and 1e-4 from 33B on: an extrapolation that was fitted to meet them.
    """
    fraction = max(FEWEST_LAYERS, trained.layers / trained.num_layers)
    rate = RATE * (WIDTH / max(WIDTH, trained.width)) ** WIDER / fraction**FEWER_LAYERS
    if settings.method == FULL:
        rate *= FULL_TUNING
    else:
        root = math.sqrt(settings.rank)
        by_root = settings.method == "rslora" or settings.method_options.get("use_rslora")
        scale = settings.alpha / (root if by_root else settings.rank)
        rate *= min(1.0, max(LOWEST_CORRECTION, SCALE * math.sqrt(RANK) / (scale * root)))
    if settings.loraplus_ratio is not None:
        rate /= math.sqrt(settings.loraplus_ratio)
    return float(f"{rate:.2g}")


def default_targets(method: str, kind: TaskKind) -> str | None:
    """The modules that carry adapters where the settings name none; None for PEFT's choice, mostly query and value.

    Decoders that write get LoRA on every linear layer, as in QLoRA (2305.14314) and in the trainers' own defaults.
    """
    return "all-linear" if kind in ("instruction", "text") and method in LORA_FAMILY else None


def with_defaults(settings: TrainSettings, trained: Trained) -> TrainSettings:
    """The settings with every value named, as a run records them and an advice writes them."""
    return replace(
        settings,
        learning_rate=settings.named_rate or default_rate(settings, trained),
        target_modules=settings.target_modules or default_targets(settings.method, trained.kind),
    )


def hidden_size(config: object) -> int:
    """The width of a model's hidden states, by its configuration; of several parts the text's."""
    own = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("hidden_size", "d_model", "dim", "n_embd", "embed_dim"):
        size = getattr(own, name, None)
        if isinstance(size, int) and size > 0:
            return size
    return USUAL_WIDTH
