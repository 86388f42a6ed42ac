"""What a checkpoint must hold: a configuration that says what it is, numbers, and all of them but a new head's."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig

from layersift.errors import ModelError, wrap_library_errors
from layersift.models.stacks import find_stacks

log = logging.getLogger(__name__)
MOST_LAYERS = 10_000  # no model has so many; building them would only fill the memory


def require_sound_config(config: Any, name: str) -> None:
    """Refuse what transformers would pass over in silence, or would build until memory ends.

    Raises:
        ModelError: more layers than any model has, architectures that are no names of model classes, or a quantization
            that transformers does not know.
    """
    for part in (config, *vars(config).values()):
        if isinstance(part, PretrainedConfig):
            for key, value in vars(part).items():
                if "layer" in key and isinstance(value, int) and value > MOST_LAYERS:
                    raise ModelError(f"{name!r}: config.json says {key} {value}; no model has so many layers")
    architectures = getattr(config, "architectures", None) or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise ModelError(f"{name!r}: architectures in config.json is {architectures!r}; a list of class names is right")
    for architecture in architectures[:1]:
        named = getattr(transformers, architecture, None)
        if named is not None and not (isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)):
            raise ModelError(f"{name!r}: config.json names {architecture!r} as its architecture, which is no model")
    quantization = getattr(config, "quantization_config", None)
    if isinstance(quantization, dict):
        with wrap_library_errors(
            ModelError,
            f"{name!r}: its quantization cannot be read",
            "quantization_config in its config.json is to be as save_pretrained writes it",
        ):
            from transformers.quantizers import AutoHfQuantizer  # takes a second to import

            if not AutoHfQuantizer.supports_quant_method(quantization):
                raise ModelError(
                    f"{name!r}: transformers does not know its quantization, {quantization['quant_method']!r}, and "
                    "would read the numbers as they are"
                )


def require_complete(model: nn.Module, report: Any, name: str, new_head: bool) -> None:
    """A head may be new; anything else with random weights would be ranked and trained without anyone noticing.

    A pooler may be missing, too, as in checkpoints of masked language models; that is logged.

    Args:
        report: what transformers says of loading it.
        new_head: whether the task brings a head.

    Raises:
        ModelError: the checkpoint lacks something else.
    """
    missing = {str(key) for key in report["missing_keys"]} | {str(key[0]) for key in report["mismatched_keys"]}
    pooler = {key for key in missing if ".pooler." in f".{key}"}
    lacking = missing - pooler
    if new_head:
        below = _below_the_head(model)
        lacking = {key for key in lacking if key.startswith(below)}
    if lacking:
        raise ModelError(
            f"{name!r} lacks weights for {len(lacking)} parameters, such as {min(lacking)}; only a new head may be "
            "missing"
        )
    if pooler:
        log.warning("%s: the checkpoint has no %s; it is new", name, min(pooler).rpartition(".")[0])


def _below_the_head(model: nn.Module) -> tuple[str, ...]:
    """How the names begin of what holds the blocks or the embeddings."""
    names = {stack.path for stack in find_stacks(model)}
    with suppress(NotImplementedError, AttributeError):
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        names |= {name for name, module in model.named_modules() if module is embeddings}
    return tuple(f"{name.partition('.')[0]}." for name in names)


def require_finite_weights(module: nn.Module, model: str, prefix: str = "") -> None:
    """Refuse a model, or a block of one, that holds something else than numbers.

    What is kept on disk until it runs is not looked at.

    Args:
        model: what the message calls it.
        prefix: of the weights' names, where ``module`` is a part of it.

    Raises:
        ModelError: a weight is NaN or infinite; the message names it.
    """
    key = first_not_finite(module.named_parameters())
    if key is not None:
        raise ModelError(
            f"{model}: the weights {prefix}{key} hold NaN or infinity; nothing from there on would mean anything"
        )


def first_not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; those on the meta device hold nothing."""
    for name, value in named:
        if value.is_floating_point() and value.device.type != "meta" and not bool(torch.isfinite(value).all()):
            return name
    return None


def require_finite_files(directory: Path, name: str) -> None:
    """Refuse weights that are no numbers where they are packed as they are loaded, which hides it.

    Raises:
        ModelError: a tensor of a safetensors file is NaN or infinite; the message names it.
    """
    for path in sorted(directory.glob("*.safetensors")):
        with (
            wrap_library_errors(ModelError, f"{path}: cannot be read", "fetch or save the model again"),
            safe_open(path, "pt") as file,
        ):
            tensors = ((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118  # no mapping
            key = first_not_finite(tensors)
        if key is not None:
            raise ModelError(
                f"{name!r}: the weights {key} hold NaN or infinity; nothing from there on would mean anything"
            )
