"""Put adapters on exactly the selected layers, and make sure that they are there and nowhere else."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from layersift.adapt.targets import ATTACH_REMEDY, Targets, derive_config, resolve_targets
from layersift.compat import seeded_by_module
from layersift.data.examples import IGNORED
from layersift.errors import AdapterError, wrap_library_errors
from layersift.models.stacks import BlockStack, is_encoder_decoder
from layersift.represent.hooks import evaluation_mode

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def peft_config(model: nn.Module, stack: BlockStack, layers: Sequence[int], config: PeftConfig) -> Any:
    """A copy of ``config`` that targets exactly some layers of ``model``, for ``get_peft_model`` or a trainer.

    Args:
        model: the plain model that the config is going to be used on.
        config: any PEFT config with ``target_modules``. Where it names none, PEFT's default for the architecture
            counts, or all linear layers where PEFT has no default.

    Raises:
        AdapterError: the config cannot target modules, chooses layers itself, or finds nothing in one of the layers.
    """
    targets, start = resolve_targets(model, stack, layers, config)
    return derive_config(model, targets, start)


def attach(
    model: nn.Module,
    stack: BlockStack,
    layers: Sequence[int],
    config: PeftConfig,
    *,
    adapter_name: str = "default",
    seed: int = 0,
    batches: Sequence[dict[str, torch.Tensor]] = (),
) -> PeftModel:
    """``get_peft_model`` for exactly some layers of a stack, checked after injection.

    Every adapter's first weights depend on ``seed`` and its module's name alone, so that choices of layers which share
    one start from the same weights there. The global random state is left as it was.

    Args:
        batches: model inputs of the task, for methods that start from data (EVA); only the adapted layers read them.

    Raises:
        AdapterError: see :func:`peft_config`; PEFT attached to other modules than planned; the method needs batches or
            hardware that are not there.
    """
    if _starts_from_data(config) and not batches:
        raise AdapterError("method 'eva' starts from data; give attach() batches of the task's inputs")
    placed = _place(model, stack, layers, config, adapter_name, seed)
    if _starts_from_data(config):
        _start_from_data(placed, adapter_name, batches, seed)
    return placed


def _starts_from_data(config: PeftConfig) -> bool:
    return getattr(config, "init_lora_weights", None) == "eva"


def _place(
    model: nn.Module, stack: BlockStack, layers: Sequence[int], config: PeftConfig, adapter_name: str, seed: int
) -> PeftModel:
    """Adapters where they belong, checked; those that start from data have not seen any yet."""
    from peft import get_peft_model

    targets, start = resolve_targets(model, stack, layers, config)
    derived = derive_config(model, targets, start)
    if getattr(derived, "init_lora_weights", None) == "loftq":
        _require_loftq()
    with unchanged_on_failure(model), seeded_by_module(model, targets.parameters, seed):
        with wrap_library_errors(
            AdapterError, f"PEFT cannot attach {type(config).__name__} to this model", ATTACH_REMEDY
        ):
            peft_model = get_peft_model(model, derived, adapter_name=adapter_name)
        verify(peft_model, targets)
    return peft_model


@contextmanager
def unchanged_on_failure(model: nn.Module) -> Iterator[None]:
    """Where attaching fails half-way, the model is left with its own modules, each as trainable as it was.

    Base weights that a method has rewritten by then (PiSSA, OLoRA) stay rewritten.
    """
    modules = [(module, dict(module._modules)) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, children in modules:
            module._modules.clear()
            module._modules.update(children)
        for parameter, before in required:
            parameter.requires_grad_(before)
        if hasattr(model, "peft_config"):
            del model.peft_config
        raise


@contextmanager
def attached(
    model: nn.Module,
    stack: BlockStack,
    layers: Sequence[int],
    config: PeftConfig,
    seed: int = 0,
    batches: Sequence[dict[str, torch.Tensor]] = (),
) -> Iterator[PeftModel]:
    """``model`` with adapters for a while; afterwards it is as it was before, what requires gradients included.

    For configs that leave the base weights alone; PiSSA and OLoRA do not.
    """
    required = [(p, p.requires_grad) for p in model.parameters()]
    hooks = {module: dict(module._forward_hooks) for module in model.modules()}
    if _starts_from_data(config) and not batches:
        raise AdapterError("method 'eva' starts from data, and there are no batches of it")
    peft_model = _place(model, stack, layers, config, "default", seed)
    try:
        if _starts_from_data(config):
            _start_from_data(peft_model, "default", batches, seed)
        yield peft_model
    finally:
        cast(Any, peft_model).unload()
        if hasattr(model, "peft_config"):
            del model.peft_config
        for parameter, before in required:
            parameter.requires_grad_(before)
        for module, kept in hooks.items():  # what PEFT leaves behind where looking at the data fails
            module._forward_hooks.clear()
            module._forward_hooks.update(kept)


def _require_loftq() -> None:
    accelerated = torch.cuda.is_available() or torch.xpu.is_available()
    if not accelerated or importlib.util.find_spec("bitsandbytes") is None:
        raise AdapterError("method 'loftq' needs a CUDA or XPU device and bitsandbytes (pip install bitsandbytes)")


def _start_from_data(peft_model: Any, adapter_name: str, batches: Sequence[dict[str, torch.Tensor]], seed: int) -> None:
    """EVA (Paischer et al. 2024): A from the largest right singular vectors of each adapted module's inputs.

    They are computed by a randomised method, from ``seed``; the global random state is left as it was.
    """
    from peft import initialize_lora_eva_weights

    masked: dict[str, Any] = {}
    inputs = list(batches)
    if is_encoder_decoder(peft_model) or "input_ids" not in batches[0]:
        masked = {"prepare_model_inputs_fn": None, "prepare_layer_inputs_fn": _real_tokens}
    elif "labels" in batches[0] and batches[0]["labels"].ndim != 2:  # labels that are no tokens are no mask
        inputs = [{k: v for k, v in b.items() if k != "labels"} for b in batches]
    with evaluation_mode(peft_model), torch.random.fork_rng():
        torch.manual_seed(seed)
        initialize_lora_eva_weights(peft_model, inputs, adapter_name=adapter_name, show_progress_bar=False, **masked)


def _real_tokens(layer_input: Any, model_input: Any, layer_name: str) -> torch.Tensor:
    """Inputs of a module (B, T, d) as rows, those of padding left out: of what is read, or of what is written."""
    hidden: torch.Tensor = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    masks = [model_input["attention_mask"].bool()] if "attention_mask" in model_input else []
    if masks and "labels" in model_input and model_input["labels"].ndim == 2:
        masks.insert(0 if ".decoder." in layer_name else 1, model_input["labels"] != IGNORED)
    fitting = next((mask for mask in masks if mask.shape == hidden.shape[:-1]), None)
    return hidden.reshape(-1, hidden.shape[-1]) if fitting is None else hidden[fitting]


def verify(peft_model: Any, targets: Targets) -> None:
    """Compare what PEFT attached with what was planned.

    Raises:
        AdapterError: any difference.
    """
    tuner = peft_model.base_model
    for what, planned, attached in (
        ("modules", targets.modules, tuner.targeted_module_names),
        ("parameters", targets.parameters, tuner.targeted_parameter_names),
    ):
        missing, surplus = sorted(set(planned) - set(attached)), sorted(set(attached) - set(planned))
        if missing or surplus:
            raise AdapterError(
                f"PEFT attached to other {what} than selected: {len(missing)} missing {missing[:3]}, "
                f"{len(surplus)} too many {surplus[:3]}"
            )
