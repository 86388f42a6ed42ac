"""What the files of a run, an adapter or a model say of whether it works, each fault with its remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open

from layersift.adapt import store
from layersift.config.defaults import Trained, default_rate, hidden_size
from layersift.config.recipe import ModelSource, TaskKind
from layersift.config.train import FULL
from layersift.errors import AdapterError, LayersiftError, ModelError, listed, wrap_library_errors
from layersift.files import read_json
from layersift.models.load import empty_model, load_config
from layersift.models.stacks import find_stacks
from layersift.records.runs import RECORD_FILE, SELECTION_FILE, RunRecord
from layersift.records.selection import Selection
from layersift.training.watch import read_log

Level = Literal["ok", "note", "fault"]
FEWEST_LOSSES = 20  # logged, before it is said whether the loss fell
MUCH_PADDING = 0.3  # of the places in batches; rows grouped by length have less
FAR = 10.0  # times the default rate, or a tenth of it
ADAPTER_PART = re.compile(
    r"\.(lora_|hada_|lokr_|oft_|boft_|ia3_|vera_|ln_tuning|randlora_|vblora_|c3a_|fourierft_|hra_|road_)"
)
STARTS_AT_ZERO = ".lora_B."  # LoRA's second matrix, by whose zeros an adapter changes nothing at first


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str  # a word or two
    says: str
    remedy: str = ""  # of what is no good


def find(place: Path) -> list[Finding]:
    """Look at a run directory of `layersift train`, an adapter's directory of PEFT or a model's directory.

    Raises:
        LayersiftError: it is none of these, or a file of it cannot be read.
    """
    if not place.is_dir():
        raise LayersiftError(f"{place}: no such directory; expected a run, an adapter of PEFT or a model")
    if (place / RECORD_FILE).is_file():
        return list(_of_run(place))
    if (place / store.CONFIG_FILE).is_file():
        return list(_of_adapter(place, None))
    if (place / "config.json").is_file():
        return list(_of_model(place))
    raise LayersiftError(
        f"{place}: neither a run ({RECORD_FILE}), nor an adapter ({store.CONFIG_FILE}), nor a model (config.json)"
    )


def _of_run(place: Path) -> Iterator[Finding]:
    record = RunRecord.load(place)
    # Who may write a run directory could otherwise have any code run.
    record = replace(record, source=replace(record.source, trust_remote_code=False))
    if record.settings.method == FULL:
        tensors = _tensors(place / store.WEIGHTS_FILE)
        yield Finding("ok", "trained", f"layers {record.mask} themselves, {len(tensors)} tensors")
        yield from _sound(tensors.items())
    else:
        yield from _of_adapter(place, record)
    if record.trained_digest not in (None, store.digest(record.settings.method, place)):
        yield Finding(
            "fault", "files", "the trained weights are not those that the training wrote", "copy the whole run again"
        )
    yield from _of_training(place, record)


def _of_training(place: Path, record: RunRecord) -> Iterator[Finding]:
    """What a run's record and log say."""
    settings = record.settings
    selection = Selection.load(place / SELECTION_FILE)
    said, usual = f"{settings.rate:g}, {settings.scheduler}", None
    if Path(record.source.name).is_dir() and record.rate_search is None:
        with suppress(ModelError):  # it is said of the base model
            width = hidden_size(load_config(record.source))
            trained = Trained(record.encoder.kind, width, record.mask.count("1"), selection.num_layers)
            usual = default_rate(settings, trained)
    if usual is not None and not usual / FAR <= settings.rate <= usual * FAR:
        yield Finding(
            "note", "learning rate", f"{said}; the default here is {usual:.2g}", "try --learning-rate auto or none"
        )
    else:
        yield Finding("ok", "learning rate", said)
    yield Finding("ok", "length", f"{record.steps} steps over {record.samples} rows")
    if record.padding is not None:
        much, said = record.padding > MUCH_PADDING, f"{record.padding:.0%} of each batch"
        remedy = "use a smaller --batch-size with --gradient-accumulation, or cut long rows by --max-length"
        yield Finding("note", "padding", said, remedy) if much else Finding("ok", "padding", said)
    yield from _of_losses([float(entry["loss"]) for entry in read_log(place)])
    if record.data.left_out:
        yield Finding("note", "rows", record.data.left_out, "--max-length decides what is cut; see `inspect --data`")
    if record.stopped is not None:
        yield Finding("note", "early stop", f"kept is {record.stopped}", "--patience decides how long it waits")
    if record.activation_cache_stopped is not None:
        yield Finding("note", "cache", record.activation_cache_stopped, "see docs/speed.md")
    for notice in record.notices:
        yield Finding("note", "training", notice)
    if record.held_back is not None:
        yield from _of_held_back(record)


def _of_losses(losses: Sequence[float]) -> Iterator[Finding]:
    if any(not np.isfinite(loss) for loss in losses):
        yield Finding("fault", "loss", "it became NaN or infinite", "lower --learning-rate, or train in bf16, not fp16")
        return
    if len(losses) < FEWEST_LOSSES:
        return
    quarter = len(losses) // 4
    first, last = np.mean(losses[:quarter]), np.mean(losses[-quarter:])
    told = f"from {first:.4f} (first quarter) to {last:.4f} (last)"
    if last >= first:
        remedy = "try --learning-rate auto, and read some rows by `layersift inspect MODEL --data FILE`"
        yield Finding("fault", "loss", f"it did not fall: {told}", remedy)
    else:
        yield Finding("ok", "loss", f"it fell {told}")


def _of_held_back(record: RunRecord) -> Iterator[Finding]:
    judged = record.held_back
    assert judged is not None
    name, score = next(iter(judged.metrics.items()))
    told = f"{name} {'undefined' if score is None else f'{score:.4f}'} on {len(judged.rows)} rows held back"
    usual = judged.majority_accuracy
    if usual is not None and name == "accuracy" and score is not None and score <= usual:
        remedy = "train for more --epochs, or at another --learning-rate"
        yield Finding("fault", "score", f"{told}: no better than always {judged.majority!r} ({usual:.4f})", remedy)
    else:
        yield Finding("ok", "score", told)
    if judged.tokens_seen:
        yield Finding(
            "fault",
            "leak",
            f"{judged.tokens_seen} of the rows held back read like training rows",
            "raise --max-length, or remove rows that are the same (`layersift inspect MODEL --data A --against B`)",
        )
    if judged.never_predicted:
        names = ", ".join(map(repr, judged.never_predicted))
        yield Finding("note", "classes", f"never predicted: {names}", "train on more rows of these, or for longer")


def _of_adapter(place: Path, record: RunRecord | None) -> Iterator[Finding]:
    """What an adapter's configuration and weights say."""
    config = read_json(place / store.CONFIG_FILE, "an adapter's configuration")
    path = place / store.ADAPTER_FILE
    if not path.is_file():
        beside = ", ".join(sorted(p.name for p in place.glob("adapter_model.*"))) or "nothing"
        raise AdapterError(f"{path}: no such file ({beside} is there); save the adapter as safetensors")
    tensors = _tensors(path)
    adapters = {name: value for name, value in tensors.items() if ADAPTER_PART.search(name)}
    modules = sorted({_module_of(name) for name in adapters})
    base = str(config.get("base_model_name_or_path") or "MODEL")
    if not modules:
        remedy = f"`layersift inspect {base} --layers all` lists the modules that target_modules can name"
        yield Finding("fault", "modules", "no module carries an adapter", remedy)
        return
    layers = sorted({int(number) for name in modules for number in re.findall(r"\.(\d+)\.", name)[:1]})
    leaves = sorted({name.rpartition(".")[2] for name in modules})
    yield Finding(
        "ok", "modules", f"{len(modules)} adapted: {listed(leaves, 60)} of layers {listed(map(str, layers), 60)}"
    )
    yield from _of_targets(config, modules, layers)
    yield from _sound(tensors.items())
    yield from _of_movement(adapters)
    source = record.source if record is not None else ModelSource(base)
    if Path(source.name).is_dir():
        yield from _of_base(source, None if record is None else record.encoder.kind, modules)
    else:
        yield Finding("note", "base model", f"{source.name} is no directory here, so its modules were not compared")


def _module_of(name: str) -> str:
    """The adapted module that a saved weight belongs to; stacked experts are wrapped."""
    return ADAPTER_PART.split(name)[0].removeprefix("base_model.model.").removesuffix(".base_layer")


def _of_targets(config: dict[str, Any], modules: Sequence[str], layers: Sequence[int]) -> Iterator[Finding]:
    """Names and layers that the configuration asks for, and no weight belongs to."""
    wanted = config.get("target_modules")
    if isinstance(wanted, str) and wanted != "all-linear":
        with wrap_library_errors(AdapterError, f"target_modules {wanted!r} is no regular expression", "give names"):
            names = [] if any(re.fullmatch(wanted, name) for name in modules) else [wanted]
    elif isinstance(wanted, list):
        names = [one for one in map(str, wanted) if not any(m == one or m.endswith(f".{one}") for m in modules)]
    else:
        names = []
    if names:
        yield Finding(
            "fault",
            "targets",
            f"target_modules names what no weight belongs to: {listed(map(repr, names), 100)}",
            "spell them as the model does: `layersift inspect MODEL` lists its modules",
        )
    chosen = config.get("layers_to_transform")
    chosen = [chosen] if isinstance(chosen, int) else chosen or []
    if missing := [layer for layer in chosen if layer not in layers]:
        yield Finding(
            "fault", "layers", f"layers_to_transform names layers without weights: {missing}", "count layers from 0"
        )


def _sound(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Finding]:
    """Whether all are finite numbers, and of which type; read one after the other, since a model may be large."""
    count, broken, types = 0, [], set()
    for name, value in tensors:
        count += 1
        if not bool(torch.isfinite(value.float()).all()):
            broken.append(name)
        if value.is_floating_point():
            types.add(str(value.dtype).removeprefix("torch."))
    if broken:
        yield Finding(
            "fault",
            "numbers",
            f"NaN or infinity in {len(broken)} of {count} tensors, such as {broken[0]}",
            "train again at a lower --learning-rate, in bf16 or float32, not fp16",
        )
    else:
        yield Finding("ok", "numbers", f"all finite in {count} tensors")
    kinds = sorted(types)
    narrow = any(kind in ("float16", "bfloat16") for kind in kinds)
    remedy = "small updates round away in 16 bits; train adapters in float32 (--precision bf16 does)"
    yield Finding("note" if narrow else "ok", "type", ", ".join(kinds), remedy if narrow else "")


def _of_movement(adapters: dict[str, torch.Tensor]) -> Iterator[Finding]:
    """Whether LoRA's second matrices left zero, where they start."""
    seconds = {name: value for name, value in adapters.items() if STARTS_AT_ZERO in name}
    if not seconds:
        yield Finding("note", "trained", "the files do not say whether it moved: this method does not start at zero")
        return
    still = [name for name, value in seconds.items() if not bool(value.any())]
    if not still:
        yield Finding("ok", "trained", f"all {len(seconds)} lora_B left zero")
        return
    says = f"{len(still)} of {len(seconds)} lora_B are zero, as before training: {still[0]}"
    remedy = "let the optimizer have parameters that require gradients, train some steps, then save"
    if len(still) == len(seconds):
        says = f"all {len(seconds)} lora_B are zero, as before training: the adapter changes nothing"
    yield Finding("fault", "trained", says, remedy)


def _of_base(source: ModelSource, kind: TaskKind | None, modules: Sequence[str]) -> Iterator[Finding]:
    """Whether the base model has the adapted modules; PEFT passes over those that it lacks."""
    try:
        names = {name for name, _ in empty_model(source, kind).named_modules()}
    except ModelError as error:
        yield Finding("note", "base model", f"its modules were not compared: {error}")
        return
    ends = {name.split(".", place)[-1] for name in names for place in range(name.count(".") + 1)}
    lacking = [name for name in modules if name not in ends and not any(end in names for end in _ends_of(name))]
    if lacking:
        yield Finding(
            "fault",
            "base model",
            f"{source.name} lacks {len(lacking)} of {len(modules)} adapted modules, such as {lacking[0]}",
            "load the adapter on the model that it was trained on",
        )
    else:
        yield Finding("ok", "base model", f"{source.name} has every adapted module")


def _ends_of(name: str) -> Iterator[str]:
    """A module's path without one, two, ... names in front, of three names at least: block, index and module."""
    parts = name.split(".")
    return (".".join(parts[place:]) for place in range(len(parts) - 2))


def _of_model(place: Path) -> Iterator[Finding]:
    source = ModelSource(str(place))
    model = empty_model(source)
    stacks = find_stacks(model)
    if not stacks:
        yield Finding(
            "fault", "layers", "no stack of blocks that adapters could be put on", "see docs/architectures.md"
        )
    for stack in stacks:
        yield Finding("ok", "layers", f"{stack.pattern}, {stack.num_layers} ({stack.tower})")
    files = sorted(place.glob("*.safetensors"))
    if not files:
        yield Finding("fault", "weights", "no *.safetensors file", "save the model by save_pretrained")
        return
    yield from _sound(chain.from_iterable(map(_read, files)))
    if not any(
        (place / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
    ):
        yield Finding(
            "fault", "tokenizer", "no tokenizer beside the model", "save it there by tokenizer.save_pretrained"
        )


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file; see :func:`_read`."""
    return dict(_read(path))


def _read(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a safetensors file, one after the other.

    Raises:
        ModelError: it cannot be read.
    """
    with (
        wrap_library_errors(ModelError, f"{path}: cannot be read", "save or copy it again"),
        safe_open(path, "pt") as file,
    ):
        for name in file.keys():  # noqa: SIM118  # no mapping
            yield name, file.get_tensor(name)
