"""What an export starts from (a selection, an advice, a run), and where its adapters go: full names and ranks."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from layersift.adapt.attach import verify
from layersift.adapt.methods import adapter_config, alpha_at_rank
from layersift.adapt.targets import Targets, derive_config, resolve_targets, trained_by_layer, without_weights
from layersift.config.quantities import layers_of
from layersift.config.recipe import TASK_KINDS, ModelSource, read_recipe
from layersift.config.train import FULL, ExportSettings, TrainSettings
from layersift.config.variants import parse_variant
from layersift.errors import AdapterError, LayersiftError
from layersift.export.config_modules import Wanted
from layersift.export.hyperparameters import Hyperparameters
from layersift.files import read_json, read_number
from layersift.models.load import UNKNOWN, empty_model
from layersift.models.stacks import find_stack
from layersift.provenance import command, versions
from layersift.records.reading import DataRecord
from layersift.records.runs import RECORD_FILE, SELECTION_FILE, RunRecord
from layersift.records.selection import Selection, make_selection

ADVICE_FILE, RECIPE_FILE = "advice.json", "recipe.yaml"
KNOWN = {"lora": "", "rslora": "use_rslora", "dora": "use_dora"}  # methods that trainers have keys for, with PEFT's


@dataclass(frozen=True)
class Source:
    """Layers, and how they are trained where that is said."""

    selection: Selection
    training: Hyperparameters | None = None
    notes: tuple[str, ...] = ()

    def shape(self, given: ExportSettings) -> ExportSettings:
        """The flags, and where they say nothing the shape of the adapters here."""
        if self.training is None:
            return given
        settings = self.training.settings
        names = ("rank", "alpha", "dropout", "target_modules")
        filled = {name: getattr(settings, name) for name in names if getattr(given, name) is None}
        if self.selection.modules is not None:  # which brings its own
            filled = {name: value for name, value in filled.items() if name in ("alpha", "dropout")}
        return replace(given, ranks=given.ranks or dict(settings.ranks), **filled)

    def method_options(self) -> dict[str, bool]:
        """Of rsLoRA and DoRA, PEFT's field.

        Raises:
            AdapterError: another method, which trainers have no words for.
        """
        if self.training is None:
            return {}
        settings = self.training.settings
        options = [name for name, value in settings.method_options.items() if value not in (None, False)]
        unknown = [name for name in options if name not in KNOWN.values()]
        if settings.method not in KNOWN or unknown:
            what = f"method {settings.method}" if settings.method not in KNOWN else f"method option {unknown[0]}"
            raise AdapterError(f"{self.training.source}: {what} is not exported; lora, rslora and dora are")
        return dict.fromkeys([*options, *([KNOWN[settings.method]] if KNOWN[settings.method] else [])], True)


def read_source(path: Path, model: str | None, trust_remote_code: bool = False) -> Source:
    """What a file or directory says.

    Args:
        model: where the model is now, instead of where the file has it.

    Raises:
        LayersiftError: neither a selection nor the directory of an advice or of a run; or an advice that nothing fits.
    """
    if not path.is_dir():
        return Source(Selection.load(path))
    if (path / ADVICE_FILE).is_file():
        return _of_advice(path, model, trust_remote_code)
    if (path / RECORD_FILE).is_file():
        return _of_run(path, model)
    raise LayersiftError(
        f"{path}: a directory without {ADVICE_FILE} of an advice or {RECORD_FILE} of a run; give one of these, or a "
        "selection file"
    )


def _of_advice(path: Path, model: str | None, trust_remote_code: bool) -> Source:
    if not (path / RECIPE_FILE).is_file():
        raise LayersiftError(f"{path}: nothing fitted there, so that it has no {RECIPE_FILE} to export")
    recipe = read_recipe(path / RECIPE_FILE)
    rows = read_number(path / ADVICE_FILE, "samples")
    kind = read_json(path / ADVICE_FILE, "an advice").get("task")
    if kind not in TASK_KINDS:
        raise LayersiftError(f"{path / ADVICE_FILE}: task is {kind!r}; write the advice anew with `layersift advise`")
    where = ModelSource(model or recipe.model.name, trust_remote_code=trust_remote_code)
    empty = empty_model(where, kind)
    stack = find_stack(empty, recipe.select.tower)
    variant = parse_variant(recipe.variants[0], stack.num_layers)
    if variant.mask is None and variant.name != "all":
        raise LayersiftError(f"{path / RECIPE_FILE}: variant {variant.name!r} names no layers; all or NAME=MASK does")
    layers = range(stack.num_layers) if variant.mask is None else layers_of(variant.mask)
    rule = f"advised for {recipe.data.data}"
    selection = make_selection(recipe.model.name, UNKNOWN, stack, layers, DataRecord(kind=kind), rule)
    training = Hyperparameters(
        source=str(path),
        model=where.name,
        data=recipe.data.data,
        task=kind,
        rows=int(rows),
        settings=_named(recipe.train, path / RECIPE_FILE),
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        quantization=recipe.model.quantization,
    )
    return Source(selection, training)


def _of_run(path: Path, model: str | None) -> Source:
    record = RunRecord.load(path)
    selection = Selection.load(path / SELECTION_FILE)
    training = Hyperparameters(
        source=str(path),
        model=model or record.source.name,
        data=record.data.source,
        task=record.encoder.kind,
        rows=record.samples,
        settings=_named(record.settings, path / RECORD_FILE),
        max_length=record.encoder.max_length,
        seed=record.seed,
        quantization=record.source.quantization,
    )
    notes = []
    if record.pruned is not None:
        notes = [f"{path} was pruned after its training; the ranks here are those of the training"]
    if selection.data.kind is None:
        selection = replace(selection, data=replace(selection.data, kind=record.encoder.kind))
    return Source(selection, training, tuple(notes))


def _named(settings: TrainSettings, where: Path) -> TrainSettings:
    """Settings with a rate and epochs.

    Raises:
        AdapterError: they train the blocks themselves.
        LayersiftError: they lack one of the two.
    """
    if settings.method == FULL:
        raise AdapterError(f"{where}: method full has no adapters; an export is of LoRA")
    for name, value in (("epochs", settings.epochs), ("learning_rate", settings.named_rate)):
        if value is None:
            raise LayersiftError(f"{where}: {name} of the training is missing")
    return settings


@dataclass(frozen=True)
class Placement:
    """LoRA on exactly the selected layers of one model, resolved without its weights."""

    selection: Selection
    config: Any  # the LoraConfig by which PEFT adapts exactly these
    modules: tuple[str, ...]  # full names, sorted
    parameters: tuple[str, ...]  # experts held as one stacked nn.Parameter
    ranks: dict[str, int]  # of the modules that have another rank than the rest
    by_names: bool  # PEFT, given the names alone, adapts exactly these
    inside_others: tuple[str, ...]  # modules elsewhere whose name has an adapted one's within it
    trained: int  # parameters of the adapters

    @property
    def rank(self) -> int:
        """Of the modules that have none of their own."""
        return int(self.config.r)

    @property
    def alpha(self) -> float:
        """LoRA's alpha at that rank."""
        return float(self.config.lora_alpha)


def place(
    selection: Selection, source: ModelSource, settings: TrainSettings, wanted: Wanted | None = None
) -> Placement:
    """Resolve a selection to the modules of its model.

    Args:
        settings: rank, alpha, dropout, target modules, ranks by module and options of LoRA; the rest is not read.
        wanted: modules that a trainer's config names, instead of the settings'.

    Raises:
        LayersiftError: the model's configuration cannot be read, it has no such blocks, or nothing to adapt in one.
        AdapterError: the modules that are wanted are not all there in the chosen layers.
    """
    kind = selection.data.kind
    model = empty_model(source, kind)
    stack, layers = selection.stack(model), selection.selected_layers
    if wanted is not None:
        options = wanted.peft_options(model, [stack.block_path(layer) for layer in layers])
        settings = replace(settings, method_options={**settings.method_options, **options})
    config = selection.config_for(model, adapter_config(settings, kind or "text", 1), settings.ranks)
    targets, start = resolve_targets(model, stack, layers, config)
    if wanted is not None:
        wanted.require_all(model, targets)
    if settings.method_options.get("rank_pattern") or settings.method_options.get("alpha_pattern"):
        return _placement(selection, model, config, targets, derive_config(model, targets, start), {})
    # Else nobody but with_ranks has set a pattern: each is a module's full name.
    ranks = {name: int(config.rank_pattern.get(re.escape(name), config.r)) for name in targets.modules}
    common = _most_common(list(ranks.values()), settings.rank)
    by_root = bool(config.use_rslora)
    alpha = alpha_at_rank(settings.alpha, settings.rank, common, by_root)
    derived = derive_config(model, targets, start)
    derived.r, derived.lora_alpha = common, int(alpha) if alpha == int(alpha) else alpha
    others = {name: rank for name, rank in ranks.items() if rank != common}
    derived.rank_pattern = {re.escape(name): rank for name, rank in others.items()}
    derived.alpha_pattern = {
        re.escape(name): alpha_at_rank(derived.lora_alpha, common, rank, by_root) for name, rank in others.items()
    }
    return _placement(selection, model, config, targets, derived, others)


def _placement(
    selection: Selection, model: nn.Module, config: Any, targets: Targets, derived: Any, ranks: dict[str, int]
) -> Placement:
    """With what is counted and tried out on the model without weights.

    Args:
        config: that the targets were resolved by; ``derived`` adapts exactly these.
    """
    stack, layers = targets.stack, targets.layers
    names = [name for name, _ in model.named_modules()]
    return Placement(
        selection=selection,
        config=derived,
        modules=targets.modules,
        parameters=targets.parameters,
        ranks=ranks,
        by_names=_by_names(model, targets, derived),
        inside_others=tuple(n for n in names if n not in targets.modules and any(t in n for t in targets.modules)),
        trained=sum(trained_by_layer(model, stack, layers, config) or []),
    )


def _most_common(ranks: list[int], asked: int) -> int:
    """The rank that needs no pattern: the one asked for where a module has it, else that of most modules."""
    if asked in ranks or not ranks:
        return asked
    counted = Counter(ranks)
    return min(counted, key=lambda rank: (-counted[rank], rank))


def _by_names(model: nn.Module, targets: Targets, derived: Any) -> bool:
    """Whether a list of full names is enough: PEFT makes other targets of it in some mixtures of experts."""
    from peft import get_peft_model

    named = copy.deepcopy(derived)
    named.target_modules, named.target_parameters = list(targets.modules), list(targets.parameters) or None
    named.layers_to_transform = named.layers_pattern = named.task_type = None
    try:
        verify(get_peft_model(without_weights(model), named, low_cpu_mem_usage=True), targets)
    except (AdapterError, ValueError):
        return False
    return True


TRAINERS = ("axolotl", "trl")


def unfrozen_text(to: str, names: Sequence[str], selection: Selection) -> str:
    """What Axolotl's config takes, or Python for TRL's trainers and any other.

    Raises:
        LayersiftError: a trainer that takes no names of parameters.
    """
    require_names(to)
    about = f"# {len(names)} parameters of {selection.model}, trained themselves: {selection.rule}.\n"
    about += f"# layersift {versions()['layersift']}: {command()}\n"
    if to == "axolotl":  # which reads points as points, and what follows $ as a range
        values = {"unfrozen_parameters": [f"^{name}$" for name in names]}
        return about + yaml.safe_dump(values, sort_keys=False, width=10**6)
    listed = "".join(f'    "{name}",\n' for name in names)
    loop = "for name, parameter in model.named_parameters():  # before SFTTrainer(model, ...)\n"
    return f"{about}UNFROZEN = {{\n{listed}}}\n{loop}    parameter.requires_grad = name in UNFROZEN\n"


def require_names(to: str) -> None:
    """Refuse a trainer that takes no names of parameters.

    Raises:
        LayersiftError: it takes none.
    """
    if to not in TRAINERS:
        raise LayersiftError(
            f"--unfreeze is for {' and '.join(TRAINERS)}; --to {to} takes adapters, without --unfreeze"
        )
