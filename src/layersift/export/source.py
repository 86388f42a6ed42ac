"""What an export starts from: a selection's file, the directory of an advice, or that of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from layersift.config.inputs import TASK_KINDS, ModelSource
from layersift.config.recipe import read_recipe
from layersift.config.train import FULL, ExportSettings, TrainSettings
from layersift.config.variants import parse_variant
from layersift.errors import AdapterError, LayersiftError
from layersift.export.hyperparameters import Hyperparameters
from layersift.files import read_json, read_number
from layersift.models.load import UNKNOWN, empty_model
from layersift.models.stacks import find_stack
from layersift.records.data import DataRecord
from layersift.records.run_record import RECORD_FILE, SELECTION_FILE, RunRecord
from layersift.records.scores import layers_of
from layersift.records.selection import Selection, by_hand

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
    selection = by_hand(recipe.model.name, UNKNOWN, stack, layers, DataRecord(kind=kind), rule)
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
