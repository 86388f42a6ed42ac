"""Which model, and how its code and numbers are to be treated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from layersift.config.fields import Checked


@dataclass(frozen=True)
class ModelSource(Checked):
    """Where a model comes from and how its code and numbers are to be treated."""

    name: Annotated[str, Meta(description="A local directory, a Hub id or a .gguf file.")]  # as the user gave it
    revision: Annotated[str | None, Meta(description="Revision of a Hub model.")] = None
    # None: float32 on a CPU, the checkpoint's own on a GPU
    dtype: Annotated[str | None, Meta(description="float32, bfloat16 or float16.")] = None
    device: Annotated[str | None, Meta(description="cpu, cuda, cuda:1, ...; else the first GPU, or the CPU.")] = None
    trust_remote_code: Annotated[bool, Meta(description="Run Python code that a model brings.")] = False
    stream: Annotated[
        bool, Meta(description="Read a model larger than memory: one block at a time, from its files.")
    ] = False
