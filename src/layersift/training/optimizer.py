"""The optimizers that transformers' Trainer does not make: LoRA+, and a learning rate by layer."""

from __future__ import annotations

from typing import Any

from layersift.config.train import TrainSettings
from layersift.models.stacks import BlockStack


def own_optimizer(trainer: Any, settings: TrainSettings, stack: BlockStack) -> Any:
    """The optimizer that the settings ask for; None where the Trainer makes it itself.

    Args:
        stack: the blocks of the model without adapters, whose paths are part of the adapted one's.

    Source: LoRA+ by Hayou, Ghosh and Yu 2024 (2402.12354), as PEFT has it.
    """
    if settings.loraplus_ratio is None and settings.layer_decay is None:
        return None
    cls, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    if settings.loraplus_ratio is None:
        optimizer = trainer.create_optimizer()
    else:
        from peft.optimizers import create_loraplus_optimizer

        optimizer = create_loraplus_optimizer(
            trainer.model,
            cls,
            loraplus_lr_ratio=settings.loraplus_ratio,
            loraplus_weight_decay=settings.weight_decay,
            **options,
        )
    if settings.layer_decay is None:
        return optimizer
    groups = _by_layer(optimizer.param_groups, trainer.model, settings.layer_decay, stack)
    return cls(groups, **options)


def _by_layer(groups: list[dict[str, Any]], model: Any, decay: float, stack: BlockStack) -> list[dict[str, Any]]:
    """The groups, each split by layer: the last layer has a group's rate, and so has what lies in no layer.

    The highest rate comes first, since the Trainer logs the first group's.
    """
    blocks = {f".{stack.block_path(layer)}.": layer for layer in range(stack.num_layers)}
    depths = {
        id(parameter): next((stack.num_layers - 1 - layer for block, layer in blocks.items() if block in f".{name}"), 0)
        for name, parameter in model.named_parameters()
    }
    split = []
    for group in groups:
        for depth in sorted({depths[id(parameter)] for parameter in group["params"]}):
            members = [parameter for parameter in group["params"] if depths[id(parameter)] == depth]
            split.append({**group, "params": members, "lr": group["lr"] * decay**depth})
    return sorted(split, key=lambda group: -float(group["lr"]))
