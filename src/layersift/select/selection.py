"""The selection: which layers carry adapters, why, and everything needed to get the same answer again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from layersift.errors import LayersiftError, SelectionError
from layersift.files import read_json, write_json
from layersift.load.blocks import BlockStack
from layersift.provenance import command, versions

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn

SCHEMA_VERSION = 1
Compat = Literal["paper"]


@dataclass(frozen=True)
class Selection:
    """The chosen layers of one stack of blocks. Layer i, counted from 0, maps R_i to R_{i+1}; it is PEFT's index."""

    model: str
    model_revision: str
    tower: str
    block_pattern: str  # path of block i, with {} for i
    num_layers: int
    importance: tuple[float | None, ...]  # 1 - similarity of a layer's input and output; None where undefined
    undefined: dict[int, str]  # layer -> why it has no importance
    ranking: tuple[int, ...]  # layers with an importance, the most important first
    selected_layers: tuple[int, ...]  # ascending
    rule: str  # how the ranking became the selection, in words
    position: str
    metric: str
    num_samples: int
    seed: int
    data: dict[str, Any]  # source, fingerprint, kind, columns
    top_dimension_share: tuple[float | None, ...]  # of each layer's output: variance in its largest dimension / all
    seconds: dict[str, float]
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    compat: Compat | None = None
    # What halves of the sample say; None where the criterion reads no samples, or too few.
    interval: tuple[tuple[float, float] | None, ...] | None = None  # of each layer's importance
    membership: tuple[float, ...] | None = None  # how probably each layer belongs among the selected
    confidence: float | None = None  # of the intervals
    until_stable: dict[str, Any] | None = None  # whether the selection was decided, and after how many samples

    def __post_init__(self) -> None:
        layers = self.selected_layers
        if not layers:
            raise SelectionError("the selection holds no layer")
        if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= self.num_layers:
            raise SelectionError(f"selected layers {list(layers)} are not ascending indices below {self.num_layers}")

    @property
    def mask(self) -> str:
        """One character a layer, 1 where it is selected."""
        return "".join("1" if i in self.selected_layers else "0" for i in range(self.num_layers))

    def attach(self, model: nn.Module, config: PeftConfig, adapter_name: str = "default", seed: int = 0) -> PeftModel:
        """Adapt exactly the selected layers of ``model``; see :func:`layersift.adapt.attach.attach`."""
        from layersift.adapt.attach import attach

        return attach(model, self, config, adapter_name, seed)

    def peft_config(self, model: nn.Module, config: PeftConfig) -> PeftConfig:
        """A copy of ``config`` for exactly the selected layers; see :func:`layersift.adapt.attach.peft_config`."""
        from layersift.adapt.attach import peft_config

        return peft_config(model, self, config)

    def to_json(self) -> dict[str, Any]:
        """The selection as JSON values, the schema version first."""
        values = asdict(self) | {"undefined": {str(i): why for i, why in self.undefined.items()}}
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        at = list(values).index("selected_layers") + 1
        names = [*list(values)[:at], "mask", *list(values)[at:]]
        return {"schema_version": SCHEMA_VERSION} | {n: self.mask if n == "mask" else values[n] for n in names}

    def save(self, path: str | Path) -> None:
        """Write the selection file, all of it or nothing."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read a selection file.

        Raises:
            SelectionError: no such file, another kind of file, another schema version, or one that was edited into
                something inconsistent.
        """
        try:
            values = read_json(Path(path), "a selection file")
        except LayersiftError as error:
            raise SelectionError(str(error)) from None
        version = values.pop("schema_version", None)
        if version is None or "selected_layers" not in values:
            raise SelectionError(f"{path}: not a selection file (no schema_version and selected_layers)")
        if version != SCHEMA_VERSION:
            raise SelectionError(
                f"{path}: selection file of schema version {version!r}; this layersift reads version "
                f"{SCHEMA_VERSION}. Make it again with `layersift select`."
            )
        mask = values.pop("mask", None)
        expected = {f.name for f in fields(cls)}
        required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        missing, foreign = sorted(required - set(values)), sorted(set(values) - expected)
        if missing or foreign:
            wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(foreign)}"] * bool(
                foreign
            )
            raise SelectionError(f"{path}: the selection file {' and '.join(wrong)}")
        try:
            values["undefined"] = {int(i): why for i, why in values["undefined"].items()}
            arguments: dict[str, Any] = {n: _tuples(v) for n, v in values.items()}
            selection = cls(**arguments)
        except (SelectionError, AttributeError, TypeError, ValueError) as error:
            raise SelectionError(f"{path}: {error}") from None
        if mask != selection.mask:
            raise SelectionError(
                f"{path}: mask {mask!r} and selected_layers {list(selection.selected_layers)} disagree"
            )
        return selection

    def __str__(self) -> str:
        return json.dumps(self.to_json())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def by_hand(
    model: str, revision: str, stack: BlockStack, layers: Sequence[int], data: dict[str, Any], rule: str
) -> Selection:
    """A selection that no score stands behind."""
    nothing = (None,) * stack.num_layers
    return Selection(
        model=model,
        model_revision=revision,
        tower=stack.tower,
        block_pattern=stack.pattern,
        num_layers=stack.num_layers,
        importance=nothing,
        undefined=dict.fromkeys(range(stack.num_layers), "not scored"),
        ranking=(),
        selected_layers=tuple(layers),
        rule=rule,
        position="",
        metric="",
        num_samples=0,
        seed=0,
        data=data,
        top_dimension_share=nothing,
        seconds={},
        versions=versions(),
        command=command(),
    )
