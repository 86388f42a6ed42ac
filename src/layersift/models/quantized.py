"""Bases that are quantised as they are loaded, by bitsandbytes through transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, cast

import torch
import transformers
from torch import nn

from layersift.compat import unconverted_modules
from layersift.config.inputs import ModelSource
from layersift.errors import ModelError
from layersift.models.stacks import find_stacks


def require_quantizer(source: ModelSource) -> None:
    """Refuse a quantization for which the library is missing.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if source.quantization is not None and find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization {source.quantization!r} needs bitsandbytes (pip install bitsandbytes)")


def quantization_arguments(
    source: ModelSource, config: Any, device: torch.device, empty: Callable[[], nn.Module]
) -> dict[str, Any]:
    """How transformers is to load the base: in 4 bits (NF4, as QLoRA), in 8, or as its files hold it.

    What is not quantised, heads and norms, has the dtype of the source.

    Args:
        empty: builds the model on the meta device.
    """
    own = getattr(config, "quantization_config", None)
    if source.quantization is None:
        return {} if own is None else {"device_map": {"": device}}
    if own is not None:
        raise ModelError(f"{source.name!r} is quantised already; leave --quantization away")
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=source.quantization == "4bit",
        load_in_8bit=source.quantization == "8bit",
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=find_unquantized(empty()),  # of 4 bits, too
        bnb_4bit_compute_dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def find_unquantized(model: nn.Module) -> list[str]:
    """Names of the modules that are not quantised: heads, and in a model that writes nothing all beside its blocks.

    transformers itself leaves alone what writes words. A classifier it takes for any other matrix; a new one, or a new
    pooler, has no weights in the files that could be packed, and what is packed cannot be trained.
    """
    left = set(unconverted_modules(model))
    if cast(Any, model).get_output_embeddings() is None:
        blocks = tuple(f"{stack.path}." for stack in find_stacks(model))
        linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        left |= {name for name in linear if not name.startswith(blocks)}
    return sorted(left)


def is_quantized(model: nn.Module) -> bool:
    """Whether the model's own weights are held in fewer bits than they compute in."""
    return getattr(model, "hf_quantizer", None) is not None


@contextmanager
def keep_weights_packed(model: nn.Module) -> Iterator[None]:
    """While active, bitsandbytes leaves 4-bit weights as they were packed.

    On processors with AVX512-BF16 its layers pack them anew at the first pass in evaluation mode: with scales rounded
    to bfloat16, and so that later passes, those of training too, hand no gradient on to what lies below (0.50).
    """
    flag = "support_avx512bf16_for_cpu"
    held = [(module, getattr(module, flag)) for module in model.modules() if hasattr(module, flag)]
    for module, _ in held:
        setattr(module, flag, False)
    try:
        yield
    finally:
        for module, before in held:
            setattr(module, flag, before)


def base_bytes(model: nn.Module, quantization: str | None) -> int:
    """Bytes of a model's parameters when it is loaded so; ``model`` may be on the meta device.

    What is not quantised is of the model's own type.
    """
    width = next(model.parameters()).element_size()
    if quantization is None:
        return width * sum(p.numel() for p in model.parameters())
    left = find_unquantized(model)
    packed = {
        id(module.weight): module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(name == key or name.endswith(f".{key}") for key in left)
    }
    plain = sum(p.numel() for p in model.parameters() if id(p) not in packed)
    return width * plain + sum(_packed_bytes(weight, quantization) for weight in packed.values())


def _packed_bytes(weight: torch.Tensor, quantization: str) -> int:
    """Bytes of the numbers, and of a scale for each 64 of them (NF4) or for each row (int8)."""
    if quantization == "4bit":
        return -(-weight.numel() // 2) + 4 * -(-weight.numel() // 64)
    return weight.numel() + 4 * weight.shape[0]
