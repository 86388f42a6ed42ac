"""Which model, and how its code and numbers are to be treated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from layersift.config.fields import Checked
from layersift.errors import ModelError, unknown_name

QUANTIZATIONS = ("4bit", "8bit")
DTYPES = ("float32", "bfloat16", "float16", "float64")
# Of torch's kinds of devices, those that run a model; `meta` holds no numbers.
DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu|mlu|musa)(:\d{1,3})?")


@dataclass(frozen=True)
class ModelSource(Checked):
    """Where a model comes from and how its code and numbers are to be treated."""

    name: Annotated[str, Meta(description="A local directory, a Hub id or a .gguf file.")]  # as the user gave it
    revision: Annotated[str | None, Meta(description="Revision of a Hub model.")] = None
    # None: float32 on a CPU, the checkpoint's own on a GPU
    dtype: Annotated[str | None, Meta(description="float32, bfloat16 or float16.")] = None
    device: Annotated[str | None, Meta(description="cpu, cuda, cuda:1, ...; else the first GPU, or the CPU.")] = None
    trust_remote_code: Annotated[bool, Meta(description="Run Python code that a model brings.")] = False
    quantization: Annotated[
        str | None, Meta(description="4bit (NF4) or 8bit: quantise the base on loading, by bitsandbytes.")
    ] = None
    stream: Annotated[
        bool, Meta(description="Read a model larger than memory: one block at a time, from its files.")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name.strip():
            raise ModelError("model '': a local directory, a Hub id or a .gguf file is needed")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise unknown_name("quantization", self.quantization, QUANTIZATIONS)
        if self.quantization is not None and self.stream:
            raise ModelError("stream reads the blocks from their files as they are; quantization needs them loaded")
        if self.device is not None and not DEVICE.fullmatch(self.device):
            raise ModelError(f"device {self.device!r}: expected cpu, cuda, cuda:1, mps or another kind of accelerator")
