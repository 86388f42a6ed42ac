"""Several processes of one command, as torchrun and ``accelerate launch`` start them.

Each reads model and data for itself. They share samples and batches, and what one of them alone may do (write, print,
lock an output) the main process does, whose result all of them get.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from layersift.errors import LayersiftError

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(hours=6)  # for the main process: it writes, merges and judges while the others wait
# Set by accelerate launch.
FSDP, DEEPSPEED, MEGATRON = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"
T = TypeVar("T")
Key = TypeVar("Key")
_working_for_all = False  # whether the main process does what the others wait for: then it shares nothing


def count_named(variable: str) -> int | None:
    """The number above 0 that an environment variable holds, if it does."""
    named = os.environ.get(variable, "")
    return int(named) if named.isdecimal() and int(named) > 0 else None


def started() -> int:
    """How many processes were started of this command."""
    return count_named("WORLD_SIZE") or 1


def is_main_process() -> bool:
    """Whether this is the one of all processes that writes and prints."""
    return os.environ.get("RANK", "0") == "0" or started() == 1


def take_sharding(asked: bool) -> bool:
    """Whether the base is to be cut into shards: as asked for, or as Accelerate's configuration says, which is then our
    business and no longer Accelerate's.

    Raises:
        LayersiftError: its configuration asks for another way than FSDP; or there is but one process.
    """
    if asked and started() == 1:
        raise LayersiftError("--sharding fsdp is for several processes: start train by torchrun or accelerate launch")
    named = [name for name in (FSDP, DEEPSPEED, MEGATRON) if os.environ.get(name, "").lower() in ("1", "true", "yes")]
    if started() == 1 or not named:
        return asked
    if DEEPSPEED in named:
        raise LayersiftError(
            f"{DEEPSPEED} is set, and DeepSpeed's checkpoints are pickles for one number of processes, which --resume "
            "could not go on from; choose FSDP in Accelerate's configuration, or give --sharding fsdp without "
            "DeepSpeed: a process holds no more of the frozen blocks than by ZeRO 3"
        )
    if named != [FSDP]:
        raise LayersiftError(
            f"{named[-1]} is set: train shards a frozen base by FSDP alone; leave Megatron out of Accelerate's "
            "configuration, or take FrozenPrefix into a trainer that shards by it"
        )
    del os.environ[FSDP]
    return True


@contextmanager
def join_processes() -> Iterator[None]:
    """Join the other processes that were started: while active, the work is shared among them."""
    if started() == 1:
        yield
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Objects are exchanged in main memory, gradients where they are.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
        distributed.barrier()  # nobody leaves while others are waiting
    finally:
        distributed.destroy_process_group()


def several() -> bool:
    """Whether there are other processes that this one has joined."""
    from torch import distributed

    joined = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return joined and not _working_for_all


def rank_and_count() -> tuple[int, int]:
    """This process's place among those joined, and how many they are; 0 and 1 where there is but one."""
    from torch import distributed

    return (distributed.get_rank(), distributed.get_world_size()) if several() else (0, 1)


def place_of(device: str) -> str:
    """What the work is done on: a device, and how many processes share it where there are several."""
    _, processes = rank_and_count()
    return device if processes == 1 else f"{device}, {processes} processes"


def share_of_batch(size: int, processes: int) -> int:
    """How many rows of a batch each of several processes has.

    Raises:
        LayersiftError: a batch cannot be shared evenly.
    """
    if size % processes:
        raise LayersiftError(f"--batch-size {size} is shared by {processes} processes; give a multiple of {processes}")
    return size // processes


def own_share(count: int) -> list[int]:
    """The samples that this process forwards: every k-th of k processes, all of them where there is but one."""
    rank, world = rank_and_count()
    return list(range(rank, count, world))


def from_all_processes(value: T) -> list[T]:
    """What every process has, in the order of their ranks."""
    if not several():
        return [value]
    from torch import distributed

    values: list[T | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return [v for v in values if v is not None]


def from_shares(mine: Sequence[T], count: int) -> list[T]:
    """All of ``count`` values in order, of which each process has those of :func:`own_share`."""
    shares = from_all_processes(mine)
    return [shares[i % len(shares)][i // len(shares)] for i in range(count)]


def sum_over_processes(mine: Mapping[Key, torch.Tensor]) -> dict[Key, torch.Tensor]:
    """Add up by key what the processes have; where a process lacks a key, it adds nothing.

    Args:
        mine: tensors in main memory, of one shape for a key in all processes. They are overwritten.
    """
    if not several():
        return dict(mine)
    import torch
    from torch import distributed

    shapes: dict[Key, torch.Size] = {}
    for of_process in from_all_processes({key: value.shape for key, value in mine.items()}):
        shapes |= of_process
    sums = {key: mine[key] if key in mine else torch.zeros(shape) for key, shape in shapes.items()}
    for value in sums.values():
        distributed.all_reduce(value)
    return sums


def by_main_process(call: Callable[[], T]) -> T:
    """What the main process finds, for all of them.

    Raises:
        LayersiftError: in all of them, what the main process met.
    """
    if not several():
        return call()
    from torch import distributed

    global _working_for_all
    outcome: list[tuple[T | None, LayersiftError | None]] = [(None, None)]
    if distributed.get_rank() == 0:
        _working_for_all = True
        try:
            outcome = [(call(), None)]
        except LayersiftError as error:
            outcome = [(None, error)]
        finally:
            _working_for_all = False
    distributed.broadcast_object_list(outcome, src=0)
    value, met = outcome[0]
    if met is not None:
        raise met
    return value  # type: ignore[return-value]  # None only where the call gives it
