"""The selection: which layers carry adapters, why, and everything needed to get the same answer again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from layersift.adapt import attach as placing
from layersift.adapt.methods import only_modules, with_ranks
from layersift.adapt.targets import resolve_targets, stack_named
from layersift.config.fields import read_as
from layersift.config.quantities import GIVEN, mask_of, towers_of
from layersift.config.recipe import MAIN_KEY, ModelSource, Recipe
from layersift.config.select import Compat
from layersift.draw import LayerBars, axis_of, importance_chart
from layersift.errors import AdapterError, LayersiftError, SelectionError, unknown_name
from layersift.files import write_json, write_text
from layersift.models.load import UNKNOWN, empty_model
from layersift.models.stacks import BlockStack, Tower, find_stack, layers_in, unwrap_compiled
from layersift.provenance import command, versions
from layersift.records.card import base_id, data_without_place, html_of, rows_of, selection_card, without_paths
from layersift.records.reading import READABLE, DataRecord, download, read_values, to_json, upload
from layersift.records.runs import SELECTION_FILE, RunRecord

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from torch import nn


Direction = Literal["high", "low"]


@dataclass(frozen=True)
class LayerScores:
    """One score a layer; None where it is undefined, with the reason.

    Args:
        criterion: name of the criterion.
        importance: (M,), the score of each layer; None where it is undefined.
        undefined: why, by layer.
        top_dimension_share: (M,), the fraction of the variance of each layer's output in its largest dimension, 0 to 1.
        num_samples: how many samples were read.
        seconds: how long the scoring took.
        direction: ``high`` or ``low``, the end of the scores that is adapted.

    Examples:
        >>> from layersift import LayerScores
        >>> scores = LayerScores("mine", (0.2, 0.5, None, 0.1), {2: "constant"}, (None,) * 4, 16, 0.0)
        >>> scores.ranking, scores.top(2), scores.beyond(0.15)
        ((1, 0, 3), (0, 1), (0, 1))
    """

    criterion: str
    importance: tuple[float | None, ...]
    undefined: dict[int, str]
    top_dimension_share: tuple[float | None, ...]
    num_samples: int
    seconds: float
    direction: Direction = "high"

    @property
    def sign(self) -> int:
        """1 where high scores count for a layer, -1 where low ones do."""
        return 1 if self.direction == "high" else -1

    @property
    def ranking(self) -> tuple[int, ...]:
        """Layers with a defined score, the first to adapt first; ties go to the lower layer."""
        scored = [(-self.sign * v, i) for i, v in enumerate(self.importance) if v is not None]
        return tuple(i for _, i in sorted(scored))

    def top(self, count: int) -> tuple[int, ...]:
        """The first ``count`` of the ranking, ascending. Where it is shorter, the lowest of the others fill up."""
        rest = [i for i in range(len(self.importance)) if i not in self.ranking]
        return tuple(sorted([*self.ranking, *rest][:count]))

    def beyond(self, threshold: float) -> tuple[int, ...]:
        """The layers that score beyond a threshold, in the criterion's direction, ascending."""
        scored = [(i, v) for i, v in enumerate(self.importance) if v is not None]
        return tuple(i for i, v in scored if self.sign * v > self.sign * threshold)


def side_by_side(scores: Sequence[LayerScores]) -> LayerScores:
    """The scores of several stacks as those of one, whose layers are counted through."""
    undefined: dict[int, str] = {}
    before = 0
    for part in scores:
        undefined |= {before + layer: why for layer, why in part.undefined.items()}
        before += len(part.importance)
    return LayerScores(
        scores[0].criterion,
        tuple(value for part in scores for value in part.importance),
        undefined,
        tuple(share for part in scores for share in part.top_dimension_share),
        scores[0].num_samples,
        sum(part.seconds for part in scores),
        scores[0].direction,
    )


DOMINATED = 0.5  # share of the variance from which on scores follow one dimension


def dominated(top_dimension_share: Sequence[float | None]) -> list[int]:
    """The layers of which a single dimension holds more than half of the variance, so that scores speak of it alone."""
    return [i for i, share in enumerate(top_dimension_share) if share is not None and share > DOMINATED]


@dataclass(frozen=True)
class Stop:
    """Where scoring until stable came to an end."""

    decided: bool
    samples: int
    at_most: int
    looks: int
    confidence: float
    needed: int | None = None  # about how many samples would decide it, where these did not


Interval = tuple[float, float]
_PATTERN = re.compile(r"([^\s{}+]+\.)?\{\}(\+([^\s{}+]+\.)?\{\})*")
MOST_LAYERS = 100_000  # no model has so many; a mask of more digits would only fill the memory


@dataclass(frozen=True, repr=False)
class Selection:
    """The chosen layers of one stack of blocks. Layer i, counted from 0, maps R_i to R_{i+1}; it is PEFT's index.

    Selections that say the same compare equal and hash alike, whenever and by whichever command they were made.

    Args:
        model: the model's name, as the user gave it.
        model_revision: commit or digest of the weights that were scored.
        tower: tower of the stack, see :class:`BlockStack`.
        block_pattern: path of block i, with {} for i.
        num_layers: M, the layers of the stack.
        importance: (M,), scores; for similarities 1 - similarity of a layer's input and output. None where undefined.
        undefined: why a layer has no importance, by layer.
        ranking: layers with an importance, the most important first.
        selected_layers: ascending, counted from 0.
        rule: how the ranking became the selection, in words.
        position: the token position that was read; empty where none was.
        metric: name of the criterion; empty where layers were given by hand.
        num_samples: how many samples were read.
        seed: of the sample.
        data: the rows, their columns and their fingerprint.
        top_dimension_share: (M,), the fraction of the variance of each layer's output in its largest dimension, 0 to 1.
        seconds: how long each step took, by name.
        versions: of the libraries, by name.
        command: the command line that made it.
        compat: ``paper`` for the published scripts' rule.
        interval: (M,), lower and upper edge of each importance, from halves of the sample; None: there are none.
        membership: (M,), the probability that a layer belongs among the selected, 0 to 1; None: there are no intervals.
        confidence: of the intervals, 0 to 1.
        resampled: of how many samples the halves were drawn; None: of all, or there are no intervals.
        modules: ranks by layer and by name within its block; None: whole layers are selected.
        until_stable: whether the selection was decided, and after how many samples.

    Examples:
        >>> from layersift import Selection
        >>> from peft import LoraConfig
        >>> selection = Selection.of_layers("model", "last:2")
        >>> print(selection)
        0011  (given as last:2)
        >>> selection.module_names("model", LoraConfig(target_modules=["query"]))
        ('bert.encoder.layer.2.attention.self.query', 'bert.encoder.layer.3.attention.self.query')
    """

    model: str
    model_revision: str
    tower: str
    block_pattern: str
    num_layers: int
    importance: tuple[float | None, ...]
    undefined: dict[int, str]
    ranking: tuple[int, ...]
    selected_layers: tuple[int, ...]
    rule: str
    position: str
    metric: str
    num_samples: int
    seed: int
    data: DataRecord
    top_dimension_share: tuple[float | None, ...]
    seconds: dict[str, float] = field(compare=False)
    versions: dict[str, str] = field(default_factory=dict, compare=False)
    command: str = field(default="", compare=False)
    compat: Compat | None = None
    interval: tuple[Interval | None, ...] | None = None
    membership: tuple[float, ...] | None = None
    confidence: float | None = None
    resampled: int | None = None
    modules: dict[int, dict[str, int]] | None = None
    until_stable: Stop | None = None

    def __post_init__(self) -> None:
        layers = self.selected_layers
        if not layers:
            raise SelectionError("the selection holds no layer")
        if not 0 < self.num_layers <= MOST_LAYERS:
            raise SelectionError(f"num_layers {self.num_layers} is out of range; from 1 to {MOST_LAYERS} is possible")
        if not _PATTERN.fullmatch(self.block_pattern) or not set(self.tower.split("+")) <= set(get_args(Tower)):
            raise SelectionError(
                f"block_pattern {self.block_pattern!r} of tower {self.tower!r}: a path such as model.layers.{{}} and "
                f"one of {', '.join(get_args(Tower))} are right"
            )
        for name in ("importance", "top_dimension_share", "interval", "membership"):
            values = getattr(self, name)
            if values is not None and len(values) != self.num_layers:
                raise SelectionError(f"{name} has {len(values)} entries for {self.num_layers} layers")
        for name in ("ranking", "undefined"):
            if beyond := [i for i in getattr(self, name) if not 0 <= i < self.num_layers]:
                raise SelectionError(f"{name} names layer {beyond[0]}; the layers are 0 to {self.num_layers - 1}")
        if self.modules is not None:
            if sorted(self.modules) != list(layers) or not all(self.modules.values()):
                raise SelectionError(f"modules are of layers {sorted(self.modules)}, selected are {list(layers)}")
            if min(rank for of in self.modules.values() for rank in of.values()) < 1:
                raise SelectionError("modules: a rank below 1")
        if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= self.num_layers:
            raise SelectionError(f"selected layers {list(layers)} are not ascending indices below {self.num_layers}")

    def __hash__(self) -> int:
        return hash((self.model_revision, self.block_pattern, self.selected_layers, self.importance, self.rule))

    @property
    def mask(self) -> str:
        """One character a layer, 1 where it is selected."""
        return mask_of(self.selected_layers, self.num_layers)

    def stack(self, model: nn.Module) -> BlockStack:
        """The blocks of ``model`` that the selection speaks of, also where a head adds or takes away a prefix.

        Raises:
            SelectionError: the model has no such stack, or several that fit.
        """
        return stack_named(model, self.block_pattern, self.tower, self.num_layers, self.model)

    def attach(
        self,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str = "default",
        seed: int = 0,
        batches: Sequence[dict[str, torch.Tensor]] = (),
    ) -> PeftModel:
        """Adapt exactly the selected layers of ``model``; see :func:`layersift.adapt.attach.attach`.

        Args:
            batches: model inputs of the task, for methods that start from data (EVA).
        """
        model = unwrap_compiled(model)
        return placing.attach(
            model,
            self.stack(model),
            self.selected_layers,
            self.config_for(model, config),
            adapter_name=adapter_name,
            seed=seed,
            batches=batches,
        )

    def peft_config(self, model: nn.Module | str, config: PeftConfig) -> PeftConfig:
        """A copy of ``config`` for exactly the selected layers; see :func:`layersift.adapt.attach.peft_config`.

        Args:
            model: one whose weights may be on the meta device, or a directory or Hub id, of which none are loaded.
        """
        model = self._resolvable(model)
        config = self.config_for(model, config)
        derived: PeftConfig = placing.peft_config(model, self.stack(model), self.selected_layers, config)
        return derived

    def module_names(self, model: nn.Module | str, config: PeftConfig) -> tuple[str, ...]:
        """Full names of what ``config`` adapts in the selected layers, sorted; ``model`` as for :meth:`peft_config`.

        Modules, and after them parameters that hold stacked experts.

        Raises:
            LayersiftError: see :func:`layersift.adapt.targets.resolve_targets`.
        """
        model = self._resolvable(model)
        targets, _ = resolve_targets(model, self.stack(model), self.selected_layers, self.config_for(model, config))
        return (*targets.modules, *targets.parameters)

    def _resolvable(self, model: nn.Module | str) -> nn.Module:
        """A model whose modules can be named; without weights where it is given by name."""
        plain = empty_model(ModelSource(model), self.data.kind) if isinstance(model, str) else model
        inner: nn.Module = unwrap_compiled(plain)
        return inner

    def config_for(
        self, model: nn.Module, config: PeftConfig, ranks: Mapping[str | int, int] | None = None
    ) -> PeftConfig:
        """``config`` with other ranks for some modules where whole layers are selected; see
        :func:`layersift.adapt.methods.with_ranks`. Else a copy for the selected modules at theirs.

        Raises:
            AdapterError: the method has no ranks by module, or the model lacks one of the modules; other ranks beside
                those of the selection.
        """
        if self.modules is None:
            ranked: PeftConfig = with_ranks(model, self.stack(model), self.selected_layers, config, ranks or {})
            return ranked
        if ranks:
            raise AdapterError("the selection gives its modules ranks of their own; leave the others away")
        derived: PeftConfig = only_modules(model, self.stack(model), config, self.modules)
        return derived

    def plot(self) -> Any:
        """The importance of each layer as an Altair chart, which notebooks draw and ``.save("file.png")`` writes."""
        bars = LayerBars(
            self.metric,
            self.importance,
            self.selected_layers,
            self.undefined,
            None if self.interval is None else [None if edges is None else edges[0] for edges in self.interval],
            None if self.interval is None else [None if edges is None else edges[1] for edges in self.interval],
            self.membership,
            dict.fromkeys(dominated(self.top_dimension_share), "one dimension"),
        )
        chart = importance_chart([bars], axis=axis_of(self.metric))
        about = f"{_short(self.model)} on {_short(self.data.source or 'data')}"
        lines = "" if self.confidence is None else f"; lines: {self.confidence:.0%} intervals"
        sample = f"{self.num_samples} samples, position {self.position or 'none'}{lines}"
        title = {"text": about, "subtitle": sample, "anchor": "start", "fontSize": 12}
        return chart.properties(width=max(360, 18 * self.num_layers), height=260, title=title)

    def to_json(self) -> dict[str, Any]:
        """The selection as JSON values, the schema version first and the mask beside the layers."""
        values = to_json(self)
        at = list(values).index("selected_layers") + 1
        names = [*list(values)[:at], "mask", *list(values)[at:]]
        return {name: self.mask if name == "mask" else values[name] for name in names}

    def save(self, path: str | Path) -> None:
        """Write the selection file, all of it or nothing."""
        write_json(Path(path), self.to_json())

    @classmethod
    def of_layers(cls, model: nn.Module | str, layers: str, tower: str | None = None) -> Selection:
        """The selection of layers that are given by hand; nothing is scored.

        Args:
            model: one whose weights may be on the meta device, or a directory or Hub id, of which none are loaded.
            layers: as ``--layers`` has them: ``20-27,31``, ``last:8``, ``first:4``, ``every:2``; of several stacks of
                blocks ``encoder=8-11 decoder=0-11``.
            tower: whose blocks are meant; see :func:`layersift.models.stacks.choose_stack`.

        Raises:
            LayersiftError: the model has no blocks; or a layer that is not there, or is named twice.
        """
        plain = empty_model(ModelSource(model)) if isinstance(model, str) else unwrap_compiled(model)
        config = getattr(plain, "config", None)
        name = model if isinstance(model, str) else str(getattr(config, "_name_or_path", "") or type(plain).__name__)
        stack = find_stack(plain, towers_of(layers) or tower)
        chosen = layers_in(stack, layers)
        return make_selection(name, UNKNOWN, stack, chosen, DataRecord(), f"{GIVEN}{layers}")

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read a selection file.

        Raises:
            SelectionError: no such file, another kind of file, another schema version, or one that was edited into
                something inconsistent.
        """
        try:
            values = read_values(Path(path), "a selection file", "selected_layers")
            mask = values.pop("mask", None)
            selection = read_as(cls, values, str(path))
        except LayersiftError as error:
            said = str(error)
            raise SelectionError(said if str(path) in said else f"{path}: {said}") from None
        if mask != selection.mask:
            raise SelectionError(
                f"{path}: mask {mask!r} and selected_layers {list(selection.selected_layers)} disagree"
            )
        return selection

    def push_to_hub(
        self, repo: str, *, base_model: str | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Put the selection, with a card, into a model repository of the Hub; its address.

        Args:
            base_model: the model's Hub id, where the selection was made with a copy on a disk.

        Raises:
            LayersiftError: the model has no Hub id, the Hub refuses, or it cannot be reached.
        """
        base = base_model or base_id(self.model, self.model_revision)
        if base is None:
            raise SelectionError(f"{self.model!r} is no model that others have; base_model names it on the Hub")
        with TemporaryDirectory() as place:
            shared = self.without_places(base)
            shared.save(Path(place) / SELECTION_FILE)
            write_text(Path(place) / "README.md", selection_card(shared, base, repo))
            return upload(Path(place), repo, private=private, token=token)

    def without_places(self, model: str) -> Selection:
        """The selection without the paths of this machine, its model under another name."""
        return replace(self, model=model, data=data_without_place(self.data), command=without_paths(self.command))

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, token: str | None = None) -> Selection:
        """The selection in a directory, such as a run's, or in a repository of the Hub.

        Raises:
            LayersiftError: there is none, or see :meth:`load`.
        """
        here = Path(name) / SELECTION_FILE
        return cls.load(
            here if here.parent.is_dir() else download(str(name), SELECTION_FILE, revision=revision, token=token)
        )

    def rows(self) -> list[list[str]]:
        """A row a layer: its importance, how sure it is, the largest dimension's share, whether it is selected."""
        return rows_of(self)

    def __str__(self) -> str:
        where = f" at {self.position}" if self.position else ""
        scored = f"; {self.metric}{where}, {self.num_samples} samples" if self.metric else ""
        return f"{self.mask}  ({self.rule}{scored})"

    def __repr__(self) -> str:
        return f"<Selection {self.mask} of {self.model}: {self.rule}>"

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        return html_of(self)


def _short(name: str) -> str:
    return "/".join(Path(name).parts[-2:])


def make_selection(
    model: str, revision: str, stack: BlockStack, layers: Sequence[int], data: DataRecord, rule: str
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


KINDS: dict[str, Any] = {"recipe": Recipe, "selection": Selection, "run": RunRecord}


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON schema of a recipe, of a selection file or of a run's record.

    Raises:
        LayersiftError: another kind.
    """
    if kind not in KINDS:
        raise unknown_name("kind of schema", kind, KINDS)
    cls = KINDS[kind]
    schema = msgspec.json.schema(cls)
    for entry in schema["$defs"].values():  # of a docstring the text alone
        if "description" in entry:
            entry["description"] = re.split(r"\n\n(?=Args:|Examples:)", entry["description"])[0]
    entries = schema["$defs"][cls.__name__]
    entries["additionalProperties"] = False
    properties = entries["properties"]
    if kind == "recipe":  # as people write it: a text may stand in the place of a section's main entry
        for name in MAIN_KEY:
            properties[name] = {"anyOf": [properties[name], {"type": "string"}]}
    else:
        properties["schema_version"] = {"enum": list(READABLE)}
    if kind == "selection":
        properties["mask"] = {"type": "string", "pattern": "^[01]+$"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
