"""What we use of other libraries beyond what they document: each thing once, with the versions that it is for.

`tests/test_compat.py` fails where one of them moves. Read with transformers 5.8 to 5.24, PEFT 0.18 to 0.21 and
accelerate 1.3 to 1.15.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from torch import nn

# transformers


def has_class_for(auto: Any, config: Any) -> bool:
    """Whether one of transformers' auto classes builds models of a configuration."""
    mapped = getattr(config, "auto_map", None) or {}
    return type(config) in auto._model_mapping or auto.__name__ in mapped


def builds_from_config(cls: Any) -> bool:
    """Whether a class is one of transformers' auto classes."""
    return hasattr(cls, "_model_mapping")


def name_of(model: Any) -> str:
    """What a model was loaded from; nothing where it was made here."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")


def commit_of(config: Any) -> str | None:
    """The Hub's commit that a configuration was read at; later versions of transformers 5 do not keep it."""
    commit = getattr(config, "_commit_hash", None)
    return str(commit) if commit else None


def attention_of(config: Any) -> str:
    """Which implementation of attention a model runs."""
    return str(config._attn_implementation)


def unsaved_weights(model: Any) -> Sequence[str]:
    """Names of the weights that transformers leaves out on saving."""
    return getattr(model, "_keys_to_ignore_on_save", None) or ()


def unconverted_modules(model: nn.Module) -> list[str]:
    """Names of the modules that transformers itself does not quantise."""
    from transformers.quantizers.base import get_keys_to_not_convert  # takes a second to import

    return list(get_keys_to_not_convert(model))


def checkpoint_function(module: nn.Module) -> Any:
    """By what a block checkpoints itself, where it does."""
    return getattr(module, "_gradient_checkpointing_func", None)


def checkpoint_by(module: Any, function: Any) -> None:
    """Let a block checkpoint itself by a function of :func:`checkpoint_function`."""
    module.gradient_checkpointing, module._gradient_checkpointing_func = True, function


def tracker_class(name: str) -> Any:
    """The Trainer's callback for a tracker."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return INTEGRATION_TO_CALLBACK[name]


def train_on_one_gpu(arguments: Any) -> None:
    """Keep a Trainer from copying the model to all GPUs (DataParallel)."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


# torch


def keep_out_of_ddp(model: nn.Module, names: Sequence[str]) -> None:
    """Have DistributedDataParallel neither send nor compare some parameters (torch 2.6 to 2.13)."""
    from torch.nn.parallel import DistributedDataParallel

    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)  # type: ignore[no-untyped-call]


# accelerate


def local_loader(loader: Any, device: Any) -> Any:
    """A loader that puts batches on the device and tells its sampler of epochs, and deals nothing out among processes.

    ``prepare_data_loader`` is documented; that a count of one process leaves batches alone is not (Accelerate 1.3 to
    1.15).
    """
    from accelerate.data_loader import prepare_data_loader

    return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)


def offloading_hook(module: nn.Module) -> Any:
    """The hook that moves a module's weights and inputs; None where nothing does."""
    return getattr(module, "_hf_hook", None)


def drop_offloading(module: nn.Module) -> None:
    """Take a copied module's hook away, with the forward that it has put in place."""
    if vars(module).pop("_hf_hook", None) is not None:
        for name in ("_old_forward", "forward"):
            vars(module).pop(name, None)


# PEFT


def config_classes() -> dict[Any, Any]:
    """Every PEFT method's configuration class, by its type."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING  # type: ignore[no-any-return]


def tuner_classes() -> dict[Any, Any]:
    """What puts each PEFT method's adapters into a model, by its type."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    return PEFT_TYPE_TO_TUNER_MAPPING  # type: ignore[no-any-return]


def default_targets(config: Any, model_type: str | None) -> list[str]:
    """The modules that PEFT's method adapts in an architecture where its configuration names none."""
    mapping = getattr(tuner_classes()[config.peft_type], "target_module_mapping", None) or {}
    return sorted(mapping.get(model_type) or ())


def converted_config(config: Any, model: nn.Module) -> Any:
    """A copy of ``config`` after PEFT's own rewriting for mixtures of experts, which transformers 5 stores fused."""
    converted = copy.deepcopy(config)
    try:
        from peft.utils.transformers_weight_conversion import (
            convert_peft_config_for_transformers,
            get_model_conversion_mapping,
        )
    except ImportError:  # before PEFT 0.19 nothing is rewritten
        return converted
    if model not in _conversions:
        _conversions[model] = get_model_conversion_mapping(model)
    convert_peft_config_for_transformers(converted, model=model, conversions=_conversions[model])
    return converted


_conversions: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # to list them takes longer than all else


def peft_allows(name: str, config: Any, model: nn.Module) -> bool:
    """Whether PEFT does not refuse a module: in Mamba's blocks it does those whose weights a kernel reads by itself."""
    from peft.tuners import tuners_utils

    check: Callable[..., Any] | None = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    if check is not None:
        try:
            check(config, model, name.rpartition(".")[2])
        except ValueError:
            return False
    return True


def unpacked_weight(module: nn.Module) -> Any:
    """The weight of a quantised module as numbers; as it lies where PEFT cannot unpack it."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(module)


@contextmanager
def seeded_by_module(model: nn.Module, parameters: Sequence[str], seed: int) -> Iterator[None]:
    """While active, PEFT initialises each adapter of ``model`` from a seed of its own.

    PEFT asks the model for each module that it adapts, by ``get_submodule``, right before it makes the adapter.

    Args:
        parameters: full names of those that are adapted by themselves, such as stacked experts.
    """
    import torch

    ask = model.get_submodule

    def adapter_name(name: str) -> str:
        plain = name.replace(".base_layer", "")
        module: Any = ask(plain)
        wrappers = 0
        while type(module).__name__ == "ParamWrapper":  # one around the other
            module, wrappers = module.base_layer, wrappers + 1
        own = [key for key, _ in module.named_parameters(recurse=False) if f"{plain}.{key}" in parameters]
        return f"{plain}.{own[wrappers]}:{own[wrappers]}" if wrappers < len(own) else f"{name}:"

    def seeding(name: str) -> nn.Module:
        digest = hashlib.sha256(f"{seed}:{adapter_name(name)}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little"))
        return ask(name)

    with torch.random.fork_rng():
        model.get_submodule = seeding  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            del model.get_submodule
