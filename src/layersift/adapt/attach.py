"""Put adapters on exactly the selected layers, and make sure that they are there and nowhere else."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from layersift.adapt.targets import Targets, derive_config, resolve_targets, stack_of
from layersift.errors import AdapterError
from layersift.select.selection import Selection

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def peft_config(model: nn.Module, selection: Selection, config: PeftConfig) -> Any:
    """A copy of ``config`` that targets exactly the selected layers of ``model``, for ``get_peft_model`` or a trainer.

    Args:
        model: the plain model that the config is going to be used on.
        config: any PEFT config with ``target_modules``. Where it names none, PEFT's default for the architecture
            counts, or all linear layers where PEFT has no default.

    Raises:
        AdapterError: the config cannot target modules, chooses layers itself, or finds nothing in a selected layer.
        SelectionError: the selection is for another model.
    """
    targets, start = resolve_targets(model, stack_of(model, selection), selection.selected_layers, config)
    return derive_config(model, targets, start)


def attach(
    model: nn.Module, selection: Selection, config: PeftConfig, adapter_name: str = "default", seed: int = 0
) -> PeftModel:
    """``get_peft_model`` for exactly the selected layers, checked after injection.

    Every adapter's first weights depend on ``seed`` and its module's name alone, so that selections which share a
    layer start from the same weights there. The global random state is left as it was.

    Raises:
        AdapterError: see :func:`peft_config`; or PEFT attached to other modules than planned.
        SelectionError: the selection is for another model.
    """
    from peft import get_peft_model

    targets, start = resolve_targets(model, stack_of(model, selection), selection.selected_layers, config)
    derived = derive_config(model, targets, start)
    with seeded_by_module(derived, seed):
        peft_model = get_peft_model(model, derived, adapter_name=adapter_name)
    verify(peft_model, targets)
    return peft_model


def verify(peft_model: Any, targets: Targets) -> None:
    """Compare what PEFT attached with what was planned.

    Raises:
        AdapterError: any difference; the model is to be loaded again.
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


@contextmanager
def seeded_by_module(config: PeftConfig, seed: int) -> Iterator[None]:
    """While active, PEFT initialises each adapter from a seed of its own."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    tuner_class = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    original = tuner_class._create_and_replace

    @functools.wraps(original)
    def seeded(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = f"{kwargs.get('current_key', '')}:{kwargs.get('parameter_name', '')}"
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        with torch.random.fork_rng():
            torch.manual_seed(int.from_bytes(digest[:8], "little"))
            return original(self, *args, **kwargs)

    inherited = "_create_and_replace" not in vars(tuner_class)
    tuner_class._create_and_replace = seeded
    try:
        yield
    finally:
        if inherited:
            del tuner_class._create_and_replace
        else:
            tuner_class._create_and_replace = original
