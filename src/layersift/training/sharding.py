"""Keep a part of the frozen base in each of several processes: FSDP 2 of the blocks, DDP of what is trained.

A process holds 1/n of each block's frozen weights. A block's pass gathers the rest and lets it go again. Adapters, a
new head, embeddings and the output layer are whole everywhere: checkpoints and runs are those of one process.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from layersift.compat import keep_out_of_ddp
from layersift.config.train import FULL
from layersift.errors import TrainingError
from layersift.models.load import LoadedModel, is_quantized
from layersift.models.stacks import BlockStack
from layersift.step.prefix import plain_model
from layersift.training.watch import Watch


def require_shardable(loaded: LoadedModel, watch: Watch, method: str, merge: bool) -> None:
    """Refuse what needs a whole model in one process.

    Raises:
        TrainingError: that.
    """
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise TrainingError(f"--sharding fsdp needs torch 2.7 or later; this is {torch.__version__}")
    if method == FULL:
        raise TrainingError("--sharding fsdp cuts frozen weights, and method full trains them; train adapters")
    if is_quantized(loaded.model):
        raise TrainingError("--sharding fsdp cuts weights, and quantised ones are packed; leave one of them away")
    if merge:
        raise TrainingError("--sharding fsdp: no process has the whole model to merge into; leave --merge away")
    if watch.rows or watch.conclude:
        raise TrainingError(
            "--sharding fsdp does not score while it trains; leave --hold-back and --eval-data away, and run "
            "`layersift evaluate` on the finished run"
        )


def shard_blocks(adapted: Any, stack: BlockStack, device: torch.device) -> None:
    """Keep a part of what is frozen in each block in each process, and all else whole on ``device``.

    Args:
        adapted: with what is to be trained requiring gradients; the same in all processes, on a CPU or on ``device``.
        stack: the blocks of the model without adapters.
    """
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    mesh = distributed.device_mesh.init_device_mesh(device.type, (distributed.get_world_size(),))
    for block in dict.fromkeys(stack.blocks(plain_model(adapted))):  # some models run one block several times
        if any(not p.requires_grad for p in block.parameters()):
            trained = {p for p in block.parameters() if p.requires_grad}
            fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    adapted.to(device)
    keep_out_of_ddp(adapted, [name for name, p in adapted.named_parameters() if is_shard(p)])


def is_shard(parameter: nn.Parameter) -> bool:
    """Whether a process holds but a part of a parameter."""
    return hasattr(parameter, "device_mesh")
