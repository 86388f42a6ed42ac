"""EVA's redistribution of ranks as a score (Paischer et al. 2024, arXiv 2410.07170), computed by PEFT.

Principal directions of what enters every adapted map compete, by the share of variance they explain, for the ranks of
all maps together; the score is what a layer's maps win, in units of the ranks they would have had evenly.
"""

from __future__ import annotations

from typing import Any

from layersift.score.context import ScoringContext
from layersift.score.criterion import Criterion
from layersift.score.probe import Undefined
from layersift.score.short_training import RANK, with_adapters

RHO = 2.0  # EVA's own default: a map may win twice its even share


def eva_ranks(context: ScoringContext) -> list[float | Undefined]:
    """Ranks won by each layer's maps, over those of an even distribution."""
    from peft import EvaConfig

    won = [0] * context.num_layers
    even = [0] * context.num_layers
    with with_adapters(context, init_lora_weights="eva", eva_config=EvaConfig(rho=RHO)) as model:
        pattern = model.peft_config["default"].rank_pattern
        for layer in range(context.num_layers):
            prefix = f"{context.stack.block_path(layer)}."
            names = [n for n in model.targeted_module_names if n.startswith(prefix)]
            even[layer] = RANK * len(names)
            won[layer] = sum(pattern.get(name, RANK) for name in names if _is_adapted(model, name))
    return [w / e if e else Undefined("none of its maps is adapted") for w, e in zip(won, even, strict=True)]


def _is_adapted(model: Any, name: str) -> bool:
    """Whether a map has won a rank at all: PEFT takes the adapter away from one that has not."""
    return hasattr(model.base_model.model.get_submodule(name), "lora_A")


EVA = Criterion(
    name="eva",
    summary="ranks that the layer's maps win by the variance of what enters them",
    needs="forward",
    direction="high",
    score=eva_ranks,
    cost="1 forward pass or more, until the principal directions stand still",
    source="Paischer et al. 2024, EVA (2410.07170), PEFT's implementation with rho = 2",
    by_sample=False,
)
