"""Put what a method trains on the selected layers, write it, read it back: PEFT's adapters, or whole blocks.

Trained LoRA updates by their singular values, too: which directions are the largest, and factors of these alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from layersift.adapt.attach import attach
from layersift.config.train import FULL
from layersift.errors import AdapterError, wrap_library_errors
from layersift.files import write_json
from layersift.models.source import file_digest
from layersift.models.stacks import BlockStack

if TYPE_CHECKING:
    from peft import PeftConfig


ADAPTER_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"  # PEFT's
WEIGHTS_FILE = "blocks.safetensors"  # of full fine-tuning: the blocks' own weights
Batches = Sequence[dict[str, torch.Tensor]]


def adapt(
    model: nn.Module,
    stack: BlockStack,
    layers: Sequence[int],
    config: PeftConfig | None,
    *,
    with_head: bool,
    seed: int = 0,
    batches: Batches = (),
) -> Any:
    """The model with what is to be trained on some layers, and nothing else, requiring gradients.

    Args:
        config: of the adapters; None to train the blocks themselves.
        with_head: the task brings a new head, which is trained, too.
        batches: model inputs of the task, for methods that start from data.

    Raises:
        AdapterError: see :func:`layersift.adapt.attach.attach`.
    """
    if config is None:
        return unfreeze_blocks(model, stack, layers, with_head)
    return attach(model, stack, layers, config, seed=seed, batches=batches)


def save(model: Any, directory: Path) -> int:
    """Write what was trained; its size in bytes."""
    if not hasattr(model, "peft_config"):
        return save_blocks(model, directory).stat().st_size
    model.save_pretrained(directory)
    path = directory / CONFIG_FILE
    write_json(path, canonical(_named_in_full(json.loads(path.read_text()), model)))
    return (directory / ADAPTER_FILE).stat().st_size


def weights_file(method: str) -> str:
    """The file in a run directory that holds what was trained."""
    return WEIGHTS_FILE if method == FULL else ADAPTER_FILE


def digest(method: str, directory: Path) -> str:
    """SHA-256 of what was trained, and of how PEFT is to put it into the model.

    Raises:
        AdapterError: it is not there.
    """
    hashed = hashlib.sha256()
    for name in [weights_file(method), *([] if method == FULL else [CONFIG_FILE])]:
        if not (directory / name).is_file():
            raise AdapterError(f"{directory / name}: no such file; what was trained is not all there")
        hashed.update(file_digest(directory / name).encode())
    return hashed.hexdigest()


def load(model: nn.Module, method: str, directory: Path) -> Any:
    """A fresh model with what was trained.

    Raises:
        AdapterError: it belongs to another model: weights are left over, or some are not there.
    """
    if method == FULL:
        return load_blocks(model, directory)
    from peft import PeftModel, get_peft_model_state_dict

    belongs_elsewhere = f"{directory / ADAPTER_FILE}: the trained weights are not those of this model"
    with wrap_library_errors(AdapterError, belongs_elsewhere, "copy the whole run again"):
        adapted = PeftModel.from_pretrained(model, str(directory))
        with safe_open(directory / ADAPTER_FILE, "pt") as file:
            saved = set(file.keys())
        wanted = set(get_peft_model_state_dict(adapted))
    if saved != wanted:  # PEFT goes on with the first weights where none are there
        one = min(saved ^ wanted)
        raise AdapterError(
            f"{belongs_elsewhere}: {len(wanted - saved)} are not there, {len(saved - wanted)} are left over, such as "
            f"{one}"
        )
    return adapted


def merged(model: Any) -> Any:
    """The plain model with the training in its own weights."""
    return model.merge_and_unload() if hasattr(model, "peft_config") else model


def canonical(config: dict[str, Any]) -> dict[str, Any]:
    """PEFT writes sets in an order that changes from run to run; sorted, equal configs are equal files."""
    return {k: sorted(v) if isinstance(v, list) and _texts(v) else v for k, v in sorted(config.items())}


def _named_in_full(config: dict[str, Any], model: Any) -> dict[str, Any]:
    """With the adapted modules' full names in place of a regex, which SGLang refuses in a saved adapter."""
    if config["peft_type"] != "LORA" or not isinstance(config["target_modules"], str):
        return config  # no server reads other types; and where it is no regex, PEFT would change full names
    return config | {"target_modules": list(model.base_model.targeted_module_names)}


def _texts(values: list[Any]) -> bool:
    return all(isinstance(v, str) for v in values)


def unfreeze_blocks(model: nn.Module, stack: BlockStack, layers: Sequence[int], with_head: bool) -> nn.Module:
    """Train some blocks, with ``with_head`` also what lies outside of the backbone, and nothing else."""
    prefixes = tuple(f"{stack.block_path(layer)}." for layer in layers)
    head = set(head_parameters(model)) if with_head else set()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes) or name in head)
    return model


def head_parameters(model: Any) -> Iterator[str]:
    """Names of the parameters outside of the backbone."""
    prefix = f"{model.base_model_prefix}."
    yield from (name for name, _ in model.named_parameters() if not name.startswith(prefix))


def save_blocks(model: nn.Module, directory: Path) -> Path:
    """Write the trained weights, under their full names."""
    trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    path = directory / WEIGHTS_FILE
    save_file(trained, path)
    return path


def load_blocks(model: nn.Module, directory: Path) -> nn.Module:
    """Put trained weights into a fresh model.

    Raises:
        AdapterError: the file holds weights that the model does not have.
    """
    with wrap_library_errors(
        AdapterError,
        f"{directory / WEIGHTS_FILE}: the trained weights are not those of this model",
        "copy the whole run again",
    ):
        weights: dict[str, torch.Tensor] = load_file(directory / WEIGHTS_FILE)
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise AdapterError(f"{directory / WEIGHTS_FILE} holds {unknown[0]!r}, which the model does not have")
    return model


@dataclass(frozen=True)
class Update:
    """What a LoRA pair adds to a weight: scale times B (out, rank) times A (rank, in)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Of the factors, whatever the product's is."""
        return int(self.a.shape[0])

    @property
    def price(self) -> int:
        """Parameters of one direction."""
        return int(self.a.shape[1] + self.b.shape[0])

    @cached_property
    def decomposition(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """U (out, k), the singular values descending, and V transposed (k, in), in float64.

        The product itself, which may be large, is not formed: QR of both factors, then SVD of a rank by rank matrix.
        """
        q_out, r_out = torch.linalg.qr(self.b.double())
        q_in, r_in = torch.linalg.qr(self.a.double().T)
        left, values, right = torch.linalg.svd(self.scale * r_out @ r_in.T)
        count = len(values)
        return q_out @ left[:, :count], values, right[:count] @ q_in.T

    @property
    def values(self) -> list[float]:
        """The singular values, descending."""
        singular_values: list[float] = self.decomposition[1].tolist()
        return singular_values

    def truncated(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of the first directions, of the same type and under the same scale, neither larger than the other."""
        left, values, right = self.decomposition
        root = (values[:rank] / self.scale).sqrt()
        a, b = root[:, None] * right[:rank], left[:, :rank] * root
        return a.to(self.a.dtype).contiguous(), b.to(self.b.dtype).contiguous()


def keep_largest(updates: Mapping[str, Update], parameters: int) -> dict[str, int]:
    """The rank left to each update where only the largest singular values of all are kept; 0 drops the module.

    One threshold parts what is kept from what is dropped: the lowest within the budget. Of equal values the first
    names' are kept.

    Source: PARA (2604.27796).

    Args:
        parameters: the most that all factors together may have.

    Raises:
        AdapterError: an update is not finite, or the budget is not enough for the largest direction.
    """
    for name, update in updates.items():
        if not (torch.isfinite(update.a).all() and torch.isfinite(update.b).all()):
            raise AdapterError(f"the adapters of {name} are not finite; nothing can be pruned by their size")
    pooled = sorted(
        ((value, name) for name, update in updates.items() for value in update.values),
        key=lambda entry: (-entry[0], entry[1]),
    )
    ranks, left = dict.fromkeys(updates, 0), parameters
    for value, name in pooled:
        left -= updates[name].price
        if left < 0 or value <= 0:
            break
        ranks[name] += 1
    if not any(ranks.values()):
        first = updates[pooled[0][1]].price
        raise AdapterError(
            f"a budget of {parameters:,} parameters is not enough for one direction; {first:,} are, of {pooled[0][1]}"
        )
    return ranks


def norm_of(values: Sequence[float]) -> float:
    """The Frobenius norm of updates with these singular values."""
    return math.sqrt(math.fsum(value * value for value in values))
