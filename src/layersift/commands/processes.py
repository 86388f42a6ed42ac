"""Several processes of one command, as torchrun and ``accelerate launch`` start them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from layersift.errors import LayersiftError

ANY_NUMBER = ("select", "inspect", "criteria", "recipes", "schema")


def require_one_process(command: str) -> None:
    """Refuse a command that several processes would do several times over.

    Raises:
        LayersiftError: see above.
    """
    if _started() > 1 and command not in ANY_NUMBER:
        raise LayersiftError(
            f"{command} works in one process, and WORLD_SIZE says that {_started()} were started; start it without "
            "torchrun or accelerate launch (select is shared among processes; run and compare have --jobs)"
        )


def is_main_process() -> bool:
    """Whether this is the one of all processes that writes and prints."""
    return os.environ.get("RANK", "0") == "0" or _started() == 1


@contextmanager
def join_processes() -> Iterator[None]:
    """Join the other processes that were started: while active, what is read is shared among them."""
    if _started() == 1:
        yield
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("gloo")  # what is exchanged lies in main memory
    try:
        yield
        distributed.barrier()  # nobody leaves while others are waiting
    finally:
        distributed.destroy_process_group()


def _started() -> int:
    named = os.environ.get("WORLD_SIZE", "")
    return int(named) if named.isdecimal() and int(named) > 0 else 1
