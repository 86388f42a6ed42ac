"""A LoRA adapter cut down after training: of all modules the directions that training moved furthest."""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from layersift.adapt import store
from layersift.adapt.store import Update, keep_largest, norm_of
from layersift.config.recipe import ModelSource, TaskKind
from layersift.errors import AdapterError, LayersiftError, wrap_library_errors
from layersift.export.publish import WITHOUT_LAYERS
from layersift.files import new_directory, read_json, write_json, write_text
from layersift.models.load import empty_model
from layersift.records.card import base_id, pruned_section, run_card
from layersift.records.runs import HELD_BACK_FILE, RECORD_FILE, SELECTION_FILE, Pruned, RunRecord
from layersift.records.selection import Selection

log = logging.getLogger(__name__)
PRUNED_FILE = "prune.json"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
_LAYER = re.compile(r"\.(\d+)\.")
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # those that leave the base's weights as they are
# Fields of LoraConfig that mean the same after pruning, or are written anew; another one that is set is refused.
KNOWN = frozenset(
    {
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
        *("fan_in_fan_out", "init_lora_weights", "eva_config", "runtime_config"),
    }
)


@dataclass(frozen=True)
class Budget:
    """How much may be kept: parameters of the adapters, or bytes of the file that they lie in."""

    parameters: int | None = None
    bytes: int | None = None

    @property
    def told(self) -> str:
        """For people."""
        return f"{self.parameters:,} parameters" if self.parameters is not None else f"{self.bytes:,} bytes"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as it lies in its directory."""

    directory: Path
    config: dict[str, Any]
    updates: dict[str, Update]  # by the module's full name
    others: dict[str, torch.Tensor]  # whole modules that were trained beside them, by their keys
    metadata: dict[str, str]
    header: int  # bytes of the file before the first tensor

    @property
    def parameters(self) -> int:
        """Of the LoRA matrices."""
        return sum(update.rank * update.price for update in self.updates.values())

    def affordable(self, budget: Budget) -> int:
        """The most parameters of LoRA matrices within a budget.

        Raises:
            AdapterError: the whole modules alone take more.
        """
        if budget.parameters is not None:
            return budget.parameters
        fixed = self.header + 8 + sum(tensor.nbytes for tensor in self.others.values())
        size = max(update.a.element_size() for update in self.updates.values())
        left = ((budget.bytes or 0) - fixed) // size
        if left < 1:
            raise AdapterError(
                f"{budget.told}: what else lies in {store.ADAPTER_FILE} takes {fixed:,}; a larger budget is needed"
            )
        return left


def read_adapter(directory: Path) -> Adapter:
    """The adapter in a run's directory, or in any that PEFT wrote.

    Raises:
        AdapterError: another kind of adapter, or a variant of LoRA whose updates are not scale times B times A.
    """
    config = read_json(directory / store.CONFIG_FILE, "the adapter_config.json of a LoRA adapter")
    _require_plain(directory, config)
    path = directory / store.ADAPTER_FILE
    saved = tuple(config.get("modules_to_save") or ())
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    others = {}
    with (
        wrap_library_errors(AdapterError, f"{path}: cannot be read", "copy the whole run again"),
        safe_open(path, "pt") as file,
    ):
        for key in file.keys():  # noqa: SIM118  # no mapping
            tensor = file.get_tensor(key)
            match = _KEY.fullmatch(key)
            if match and tensor.ndim == 2:
                pairs.setdefault(match["module"], {})[match["matrix"]] = tensor
            elif any(f".{module}." in f".{key}" for module in saved):
                others[key] = tensor
            else:
                raise AdapterError(f"{path}: {key} is no LoRA matrix of a linear layer; only such can be pruned")
        metadata = dict(file.metadata() or {})
    updates = {}
    for name, pair in sorted(pairs.items()):
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise AdapterError(f"{path}: the matrices of {name} do not belong together")
        updates[name] = Update(pair["A"], pair["B"], _scale(config, name, len(pair["A"])))
    if not updates:
        raise AdapterError(f"{path}: there are no LoRA matrices in it")
    with path.open("rb") as raw:
        header = 8 + int.from_bytes(raw.read(8), "little")
    return Adapter(directory, config, updates, others, metadata, header)


def _require_plain(directory: Path, config: dict[str, Any]) -> None:
    """Refuse what is not LoRA as it was first described.

    Raises:
        AdapterError: that, with the reason.
    """
    from peft import LoraConfig

    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{directory}: an adapter of type {kind}; prune cuts LORA, whose updates have a rank")
    if config.get("use_dora"):
        raise AdapterError(
            f"{directory}: DoRA, whose updates also rescale each weight and have no low rank; train lora or rslora"
        )
    if (start := config.get("init_lora_weights")) not in STARTS:
        raise AdapterError(
            f"{directory}: started by {start!r}, which takes a part of the rank out of the base's weights; at another "
            "rank the base would be another; train lora, rslora or eva"
        )
    plain = {field.name: getattr(LoraConfig(), field.name) for field in fields(LoraConfig)}
    for name, value in sorted(config.items()):
        if name not in KNOWN and value and value != plain.get(name):
            raise AdapterError(f"{directory}: its {name} is {value!r}, which prune does not know how to keep")


def _scale(config: dict[str, Any], name: str, rank: int) -> float:
    """What PEFT multiplies a module's B A by."""
    alpha = float(_by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The first value whose pattern fits a module's name, as PEFT has it."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name)), default)


def prune(directory: Path, budget: Budget, output: Path) -> Pruned:
    """Write a smaller adapter: the largest singular values of scale times B times A over all modules.

    A run becomes a run, which ``layersift evaluate`` and PEFT can load; another adapter becomes one for PEFT.

    Raises:
        LayersiftError: no LoRA adapter, nothing to prune within the budget, or the output exists.
    """
    if not directory.is_dir():
        raise LayersiftError(f"{directory}: no such directory; expected a run or an adapter of PEFT")
    with new_directory(output, "prune") as place:
        adapter = read_adapter(directory)
        affordable = adapter.affordable(budget)
        if affordable >= adapter.parameters:
            raise LayersiftError(
                f"{directory} has {adapter.parameters:,} parameters in its adapters, which is within {budget.told}; "
                "nothing is to be pruned"
            )
        ranks = keep_largest(adapter.updates, affordable)
        _copy_rest(directory, place)
        _write_adapter(adapter, ranks, place)
        _try_names(adapter, {name for name, rank in ranks.items() if rank}, place)
        layers = _layers_of(adapter)
        pruned = _summary(adapter, budget, ranks, layers)
        write_json(place / PRUNED_FILE, _as_json(adapter, ranks, pruned))
        if (directory / RECORD_FILE).is_file():
            _write_run(adapter, ranks, layers, pruned, place)
        else:
            card = place / "README.md"
            before = card.read_text(encoding="utf-8") if card.is_file() else f"# {output.name}\n"
            write_text(card, f"{before.rstrip()}\n\n{pruned_section(pruned)}\n")
    return pruned


def _copy_rest(directory: Path, place: Path) -> None:
    """What lies beside the adapter and stays true of the smaller one."""
    for file in directory.iterdir():
        if file.is_file() and file.suffix != ".bin" and not file.name.startswith(f"{HELD_BACK_FILE}."):
            shutil.copy(file, place / file.name)


def _write_adapter(adapter: Adapter, ranks: Mapping[str, int], place: Path) -> None:
    """The weights and PEFT's config, by which exactly the modules that are left are adapted, each at its scale."""
    tensors = dict(adapter.others)
    kept = {name: rank for name, rank in ranks.items() if rank}
    for name, rank in kept.items():
        a, b = adapter.updates[name].truncated(rank)
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    save_file(tensors, place / store.ADAPTER_FILE, metadata=adapter.metadata or {"format": "pt"})
    config, by_root = adapter.config, bool(adapter.config.get("use_rslora"))
    common = Counter(kept.values()).most_common(1)[0][0]
    alphas = {name: adapter.updates[name].scale * (math.sqrt(rank) if by_root else rank) for name, rank in kept.items()}
    usual = next(alphas[name] for name, rank in kept.items() if rank == common)
    changed = {
        "r": common,
        "lora_alpha": _whole(usual),
        "target_modules": list(kept),
        "rank_pattern": {re.escape(name): rank for name, rank in kept.items() if rank != common},
        "alpha_pattern": {re.escape(name): _whole(alpha) for name, alpha in alphas.items() if alpha != usual},
        "init_lora_weights": True,
        "eva_config": None,
        **WITHOUT_LAYERS,
    }
    new = config | {name: value for name, value in changed.items() if name in config}
    write_json(place / store.CONFIG_FILE, store.canonical(new))


def _try_names(adapter: Adapter, kept: set[str], place: Path) -> None:
    """Hold what PEFT makes of the new config against the modules that are left, on the model without weights.

    Raises:
        AdapterError: it adapts others, as in some mixtures of experts.
    """
    from peft import PeftConfig, get_peft_model

    untried = "whether PEFT adapts exactly the modules that are left has not been tried"
    try:
        if (adapter.directory / RECORD_FILE).is_file():
            record = RunRecord.load(adapter.directory)
            model = empty_model(replace(record.source, trust_remote_code=False), record.encoder.kind)
        else:
            kind: TaskKind | None = "classification" if adapter.config.get("task_type") == "SEQ_CLS" else None
            model = empty_model(ModelSource(str(adapter.config.get("base_model_name_or_path") or "")), kind)
    except LayersiftError as error:
        log.warning("%s: %s", untried, error)
        return
    if missing := kept - {name for name, _ in model.named_modules()}:
        log.warning("%s: the base model, built from its configuration, has no %s", untried, min(missing))
        return
    config = PeftConfig.from_pretrained(str(place))
    config.task_type = config.modules_to_save = None
    with wrap_library_errors(
        AdapterError, f"{adapter.directory}: PEFT cannot adapt the modules that are left", "give a larger budget"
    ):
        adapted = get_peft_model(model, config, low_cpu_mem_usage=True).base_model.targeted_module_names
    if set(adapted) != kept:
        raise AdapterError(
            f"{adapter.directory}: PEFT cannot be told to adapt some of its modules alone in this architecture; give a "
            "larger budget, by which all of them are kept"
        )


def _whole(value: float) -> float | int:
    """PEFT writes whole numbers as such."""
    return int(value) if value == int(value) else value


def _layers_of(adapter: Adapter) -> dict[str, int | None]:
    """The layer of each module: as a run's selection counts them, else by the first number in its name."""
    path = adapter.directory / SELECTION_FILE
    if not path.is_file():
        matches = {name: _LAYER.search(f".{name}.") for name in adapter.updates}
        return {name: int(match[1]) if match else None for name, match in matches.items()}
    selection = Selection.load(path)
    patterns = [
        re.compile(rf"{re.escape(part).replace(re.escape('{}'), '(?P<index>[0-9]+)')}\..+")
        for part in selection.block_pattern.split("+")
    ]
    blocks = {}
    for name in adapter.updates:
        place = next(((n, int(m["index"])) for n, p in enumerate(patterns) if (m := p.fullmatch(name))), None)
        if place is None:
            raise AdapterError(f"{adapter.directory}: {name} lies in none of the blocks {selection.block_pattern}")
        blocks[name] = place
    # Several stacks are counted through: their adapted blocks in order are the selected layers in order.
    distinct = sorted(set(blocks.values()))
    if len(distinct) != len(selection.selected_layers):
        raise AdapterError(
            f"{adapter.directory}: adapters lie in {len(distinct)} blocks, {SELECTION_FILE} names "
            f"{len(selection.selected_layers)}; they are not of one training"
        )
    layers = dict(zip(distinct, selection.selected_layers, strict=True))
    return {name: layers[block] for name, block in blocks.items()}


def _summary(adapter: Adapter, budget: Budget, ranks: Mapping[str, int], layers: Mapping[str, int | None]) -> Pruned:
    """What was kept and what was lost."""
    updates = adapter.updates
    everything = norm_of([value for update in updates.values() for value in update.values])
    lost = norm_of([value for name, update in updates.items() for value in update.values[ranks[name] :]])
    by_layer: dict[int, list[float]] = {}
    for name, update in updates.items():
        by_layer.setdefault(-1 if layers[name] is None else int(layers[name] or 0), []).extend(update.values)
    shares = {layer: (norm_of(values) / everything) ** 2 for layer, values in by_layer.items()}
    return Pruned(
        budget=budget.told,
        parameters=sum(rank * updates[name].price for name, rank in ranks.items()),
        of_parameters=adapter.parameters,
        whole_modules=sum(tensor.numel() for tensor in adapter.others.values()),
        threshold=min(updates[name].values[rank - 1] for name, rank in ranks.items() if rank),
        relative_error=lost / everything,
        ranks={name: rank for name, rank in ranks.items() if rank},
        dropped=tuple(name for name, rank in ranks.items() if not rank),
        layers=dict(sorted(shares.items(), key=lambda entry: (-entry[1], entry[0]))),
        from_digest=store.digest("lora", adapter.directory),
    )


def _as_json(adapter: Adapter, ranks: Mapping[str, int], pruned: Pruned) -> dict[str, Any]:
    """The summary, and every module's singular values."""
    modules = {
        name: {"rank": ranks[name], "of": update.rank, "singular_values": update.values}
        for name, update in adapter.updates.items()
    }
    return {**pruned.to_json(), "modules": modules}


def _write_run(
    adapter: Adapter, ranks: Mapping[str, int], layers: Mapping[str, int | None], pruned: Pruned, place: Path
) -> None:
    """The records of a smaller run; scores of the whole one are not its own."""
    record, selection = RunRecord.load(adapter.directory), Selection.load(adapter.directory / SELECTION_FILE)
    modules: dict[int, dict[str, int]] = {}
    for name, rank in ranks.items():
        layer = layers[name]
        if rank and layer is not None:
            within = next(
                name[match.end() :]
                for part in selection.block_pattern.split("+")
                if (match := re.match(re.escape(part).replace(re.escape("{}"), "[0-9]+") + r"\.", name))
            )
            modules.setdefault(layer, {})[within] = rank
    smaller = replace(
        selection,
        selected_layers=tuple(sorted(modules)),
        modules=dict(sorted(modules.items())),
        rule=f"{selection.rule}; pruned after training to {pruned.budget}",
    )
    smaller.save(place / SELECTION_FILE)
    record = replace(
        record,
        mask=smaller.mask,
        trainable_parameters=pruned.parameters + pruned.whole_modules,
        adapter_bytes=(place / store.ADAPTER_FILE).stat().st_size,
        trained_digest=store.digest(record.settings.method, place),
        held_back=None,
        pruned=pruned,
    )
    record.save(place)
    base = base_id(record.source.name, record.model_revision)
    write_text(place / "README.md", run_card(record, smaller, str(adapter.config["task_type"]), base))
