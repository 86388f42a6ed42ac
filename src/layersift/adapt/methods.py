"""Adapter methods by name: LoRA's variants and every other PEFT method that targets modules.

Also other ranks for some modules: by kind (a block's attention, the others), by name or by layer.
"""

from __future__ import annotations

import copy
import math
import re
import typing
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from torch import nn

from layersift.adapt.targets import Targets, resolve_targets
from layersift.compat import config_classes, tuner_classes
from layersift.config.defaults import default_targets
from layersift.config.fields import plain_types, types_of
from layersift.config.recipe import TaskKind
from layersift.config.train import FULL, TrainSettings
from layersift.errors import AdapterError, closest, listed, unknown_name, wrap_library_errors
from layersift.models.stacks import BlockStack

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class Method:
    """A PEFT type with the settings that make it this method."""

    peft_type: str
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)


# LoRA's variants, which share one PEFT type. Other methods go by the name of their PEFT type.
VARIANTS: dict[str, Method] = {
    "lora": Method("LORA", "low-rank updates (Hu et al. 2021, 2106.09685)"),
    "pissa": Method(
        "LORA",
        "started from the largest singular values (Meng et al. 2024, 2404.02948)",
        {"init_lora_weights": "pissa"},
    ),
    "olora": Method(
        "LORA", "started from a QR decomposition (Büyükakyüz 2024, 2406.01775)", {"init_lora_weights": "olora"}
    ),
    "dora": Method(
        "LORA", "LoRA with magnitude apart from direction (Liu et al. 2024, 2402.09353)", {"use_dora": True}
    ),
    "rslora": Method(
        "LORA", "LoRA scaled by the root of the rank (Kalajdzievski 2023, 2312.03732)", {"use_rslora": True}
    ),
}
VARIANTS |= {
    "eva": Method(
        "LORA",
        "started from the task's data: the principal directions of each module's inputs (Paischer et al. 2024, "
        "2410.07170); ranks stay equal unless eva_config={rho: 2} lets them move",
        {"init_lora_weights": "eva", "eva_config": {"rho": 1.0}},
    ),
    "loftq": Method(
        "LORA",
        "started so as to make up for 4-bit rounding of the base (Li et al. 2023, 2310.08659)",
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
    ),
}
# Types with target modules that are not adapters of chosen layers: they add tokens, choose among several tasks at run
# time, or put one module beside the whole model.
NOT_BY_LAYER = frozenset({"ADAPTION_PROMPT", "TRAINABLE_TOKENS", "POLY", "SHADOW", "XLORA"})
# What the common settings are called, the first that a config has.
RANKS, ALPHAS = ("r",), ("lora_alpha", "alpha", "randlora_alpha")
DROPOUTS = ("lora_dropout", "module_dropout")
# Configs in which `r` is something else than a rank to be traded against the others, or is refused beside a default.
WITHOUT_RANK = frozenset({"VERA", "RANDLORA", "OFT", "VBLORA", "ADALORA"})


def peft_types() -> dict[str, str]:
    """Names of the PEFT methods that adapt chosen modules, in lower case, with their types."""
    tuners = tuner_classes()
    return {
        kind.value.lower(): kind.value
        for kind, config in config_classes().items()
        if kind in tuners and kind.value not in NOT_BY_LAYER
        if "target_modules" in {f.name for f in fields(config)}
    }


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        LayersiftError: no such method; the message lists them.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    known = peft_types()
    if name not in known:
        raise unknown_name("method", name, [FULL, *VARIANTS, *known])
    return Method(known[name], f"PEFT's {known[name]}")


def has_rank(name: str) -> bool:
    """Whether a method's parameters are in proportion to a rank that can be traded against layers.

    Raises:
        LayersiftError: no such method.
    """
    return name != FULL and bool(common_fields(name)["rank"])


def common_fields(name: str) -> dict[str, list[str]]:
    """The fields of a method's PEFT config that rank, alpha and dropout set; empty lists where it has none.

    Raises:
        LayersiftError: no such method.
    """
    from peft.utils import PeftType

    kind = find_method(name).peft_type
    known = {f.name for f in fields(config_classes()[PeftType(kind)])}
    scaled = kind not in WITHOUT_RANK
    return {
        "rank": [n for n in RANKS if scaled and n in known] or (["init_r", "target_r"] if kind == "ADALORA" else []),
        "alpha": [n for n in ALPHAS if scaled and n in known],
        "dropout": [n for n in (*DROPOUTS, f"{kind.lower()}_dropout") if n in known],
    }


def scales_by_root(name: str, options: Mapping[str, Any] | None = None) -> bool:
    """Whether a method scales its updates by alpha / sqrt(rank), as rsLoRA does, instead of alpha / rank.

    Args:
        options: further fields of the config by their PEFT names, as in :func:`make_config`.

    Raises:
        LayersiftError: no such method.
    """
    return name != FULL and bool({**find_method(name).settings, **(options or {})}.get("use_rslora"))


def alpha_at_rank(alpha: float, old: int, new: int, by_root: bool) -> float:
    """The alpha that scales updates of rank ``new`` as ``alpha`` scales those of rank ``old``.

    Args:
        by_root: whether the scale is alpha / sqrt(rank) and not alpha / rank.
    """
    return alpha * (math.sqrt(new / old) if by_root else new / old)


def make_config(
    name: str,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: Any,
    task_type: str,
    options: Mapping[str, Any] | None = None,
) -> PeftConfig:
    """The PEFT config of a method.

    Args:
        rank, alpha, dropout: set where the method has them.
        target_modules: as PEFT takes them; None for its default.
        options: further fields of the config by their PEFT names; they win.

    Raises:
        AdapterError: an option that the config does not have, or a value that it refuses.
        LayersiftError: no such method.
    """
    from peft.utils import PeftType

    method = find_method(name)
    cls = config_classes()[PeftType(method.peft_type)]
    known = {f.name for f in fields(cls)}
    values: dict[str, Any] = {"task_type": task_type, "target_modules": target_modules}
    common = {"rank": rank, "alpha": alpha, "dropout": dropout}
    for setting, names in common_fields(name).items():
        values |= dict.fromkeys(names, common[setting])
    if method.peft_type == "ADALORA":
        values |= {"init_r": -(-3 * rank // 2), "target_r": rank}
    values |= method.settings
    for option in options or {}:
        if option not in known:
            close = closest(option, known)
            hint = f"; did you mean {close!r}?" if close else f"; {cls.__name__} has: {listed(sorted(known))}"
            raise AdapterError(f"method {name!r} has no option {option!r}{hint}")
    for option, value in (options or {}).items():
        _require_type(name, option, value, types_of(cls)[option])
    values |= options or {}
    if isinstance(eva := values.get("eva_config"), dict):
        values["eva_config"] = _eva_config(eva)
    with wrap_library_errors(
        AdapterError, f"method {name!r} refuses its options", f"PEFT documents those of {cls.__name__}"
    ):
        return cls(**values)


# PEFT calls some fields whole numbers that it takes fractions for.
_VALUES: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int, float),
    float: (int, float),
    str: (str,),
    dict: (dict,),
    list: (list,),
    type(None): (type(None),),
}


def _require_type(method: str, option: str, value: Any, hint: Any) -> None:
    """Refuse an option's value of another type, where the config's annotation is plain enough to tell."""
    kinds = [typing.get_origin(kind) or kind for kind in plain_types(hint)]
    if not all(kind in _VALUES for kind in kinds):
        return
    if not any(isinstance(value, _VALUES[k]) and (k is bool or not isinstance(value, bool)) for k in kinds):
        wanted = " or ".join(k.__name__ for k in kinds if k is not type(None))
        raise AdapterError(f"method {method!r}: option {option} is {value!r}; {wanted} is needed")


def _eva_config(given: Mapping[str, Any]) -> Any:
    from peft import EvaConfig

    with wrap_library_errors(AdapterError, "method 'eva' refuses its options", "PEFT documents those of EvaConfig"):
        return EvaConfig(**given)


def adapter_config(settings: TrainSettings, kind: TaskKind, steps: int, seq2seq: bool = False) -> PeftConfig | None:
    """The PEFT config for a training of that many optimizer steps, None where the blocks themselves are trained.

    The layers are not its business.

    Raises:
        LayersiftError: see :func:`make_config`; or a ratio of LoRA+ for a method without LoRA's matrices.
    """
    lora = settings.method != FULL and find_method(settings.method).peft_type == "LORA"
    if settings.loraplus_ratio is not None and not lora:
        raise AdapterError(
            f"loraplus-ratio is of LoRA's matrix B, which method {settings.method!r} lacks; leave it away"
        )
    if settings.method == FULL:
        return None
    targets: Any = settings.target_modules or default_targets(settings.method, kind)
    if targets and targets != "all-linear" and re.fullmatch(r"[\w.]+(,[\w.]+)*", targets):
        targets = targets.split(",")
    options = settings.method_options
    if settings.method == "adalora":
        options = {"total_step": steps, **options}
    return make_config(
        settings.method,
        rank=settings.rank,
        alpha=int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,  # others expect int
        dropout=settings.dropout,
        target_modules=targets,
        task_type=("SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM") if kind in ("instruction", "text") else "SEQ_CLS",
        options=options,
    )


ATTENTION, MLP = "attention", "mlp"


def with_ranks(
    model: nn.Module, stack: BlockStack, layers: Sequence[int], config: PeftConfig, ranks: Mapping[str | int, int]
) -> Any:
    """A copy of ``config`` in which some modules of ``layers`` have a rank of their own, at the same scale of updates.

    Args:
        ranks: rank by ``attention``, ``mlp`` (all that is not attention), a module's name or the end of it, or a
            layer's index. Where several fit a module, the last one counts.

    Raises:
        AdapterError: the method has no ranks by module, a rank is below 1, or a key fits nothing that is adapted.
    """
    if not ranks:
        return config
    if not hasattr(config, "rank_pattern"):
        raise AdapterError(f"{type(config).__name__} has one rank for all modules; leave the ranks by module away")
    targets, _ = resolve_targets(model, stack, layers, config)
    wanted: dict[str, int] = {}
    for key, rank in ranks.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise AdapterError(f"rank of {key!r} is {rank!r}; a whole number from 1 is needed")
        fitting = [name for name in targets.modules if _fits(str(key), name, targets, model)]
        if not fitting:
            raise AdapterError(
                f"ranks: {key!r} fits none of the adapted modules; give {ATTENTION}, {MLP}, a module's name or the "
                "index of a selected layer"
            )
        wanted |= dict.fromkeys(fitting, rank)
    ranked: Any = copy.deepcopy(config)
    patterns = {re.escape(name): rank for name, rank in wanted.items()}
    ranked.rank_pattern = {**(ranked.rank_pattern or {}), **patterns}
    alpha = next((getattr(ranked, n) for n in ("lora_alpha", "alpha") if hasattr(ranked, n)), None)
    if alpha is not None and hasattr(ranked, "alpha_pattern"):
        by_root = bool(getattr(ranked, "use_rslora", False))
        scaled = {pattern: alpha_at_rank(alpha, ranked.r, rank, by_root) for pattern, rank in patterns.items()}
        ranked.alpha_pattern = {**(ranked.alpha_pattern or {}), **scaled}
    return ranked


def only_modules(
    model: nn.Module, stack: BlockStack, config: PeftConfig, ranks: Mapping[int, Mapping[str, int]]
) -> Any:
    """A copy of ``config`` for some modules alone, each at a rank of its own, at the same scale of updates.

    Args:
        ranks: by layer and the module's name within its block.

    Raises:
        AdapterError: the method has no ranks by module, or the model has no such module.
    """
    named: dict[str | int, int] = {
        f"{stack.block_path(layer)}.{name}": rank for layer, of in ranks.items() for name, rank in of.items()
    }
    narrowed: Any = copy.deepcopy(config)
    narrowed.target_modules = sorted(map(str, named))
    return with_ranks(model, stack, sorted(ranks), narrowed, named)


def _fits(key: str, name: str, targets: Targets, model: nn.Module) -> bool:
    if key in (ATTENTION, MLP):
        return is_attention(name, targets, model) == (key == ATTENTION)
    if key.isdecimal():
        return name.startswith(f"{targets.stack.block_path(int(key))}.")
    return name == key or name.endswith(f".{key}")


def is_attention(name: str, targets: Targets, model: nn.Module) -> bool:
    """Whether a module lies in its block's attention: it, or one that encloses it there, is called so.

    There is no structure to tell by: a query projection is a matrix like any other.
    """
    path = next(part.path for part in targets.stack.parts if name.startswith(f"{part.path}."))
    depth = path.count(".") + 2  # of the block
    parts = name.split(".")
    around = [".".join(parts[:end]) for end in range(depth + 1, len(parts) + 1)]
    words = [*parts[depth:], *(type(model.get_submodule(path)).__name__ for path in around)]
    return any("attention" in word.lower() or "attn" in word.lower() for word in words)


def kinds_of_modules(model: nn.Module, stack: BlockStack, config: Any) -> dict[str, str]:
    """What to give as target modules for each kind alone, in all layers; nothing where there is one kind only.

    Of the modules that ``config`` adapts; where these are of one kind, as PEFT's defaults often are, of all linear.

    Raises:
        AdapterError: see :func:`layersift.adapt.targets.resolve_targets`.
    """
    if config is None:
        return {}
    targets, _ = resolve_targets(model, stack, range(stack.num_layers), config)
    by_kind = _by_kind(targets, model)
    if not all(by_kind.values()):
        every = copy.deepcopy(config)
        every.target_modules = "all-linear"
        try:
            targets, _ = resolve_targets(model, stack, range(stack.num_layers), every)
        except AdapterError:  # a method that is not for every linear layer
            return {}
        by_kind = _by_kind(targets, model)
    # Parameters that hold stacked experts have no modules, so that neither kind would be whole.
    if targets.parameters or not all(by_kind.values()):
        return {}
    return {kind: _named(inner, by_kind[MLP if kind == ATTENTION else ATTENTION]) for kind, inner in by_kind.items()}


def name_targets(model: nn.Module, stack: BlockStack, config: Any) -> str | None:
    """The modules that ``config`` adapts in all layers, as one writes them: ``query,value``, or ``all-linear``.

    Returns:
        Ends of names with commas between, ``all-linear``, or a regex; None where these are not modules alone (stacked
        experts), or where the blocks themselves are trained.

    Raises:
        AdapterError: see :func:`layersift.adapt.targets.resolve_targets`.
    """
    if config is None:
        return None
    layers = range(stack.num_layers)
    targets, _ = resolve_targets(model, stack, layers, config)
    if targets.parameters:
        return None
    named = sorted({name for layer in layers for name in targets.leaves(layer)})
    ends = sorted({name.rpartition(".")[2] for name in named})
    for written, wanted in ((",".join(ends), ends), ("all-linear", "all-linear")):
        again = copy.deepcopy(config)
        again.target_modules = wanted
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hybrid stacks, said once already
            try:
                same = resolve_targets(model, stack, layers, again)[0].modules == targets.modules
            except AdapterError:
                same = False
        if same:
            return written
    return _named(named, named)


def _by_kind(targets: Targets, model: nn.Module) -> dict[str, list[str]]:
    """Names within their blocks."""
    inner_names: dict[str, set[str]] = {ATTENTION: set(), MLP: set()}
    for layer in targets.layers:
        prefix = f"{targets.stack.block_path(layer)}."
        for inner in targets.leaves(layer):
            inner_names[ATTENTION if is_attention(prefix + inner, targets, model) else MLP].add(inner)
    return {kind: sorted(names) for kind, names in inner_names.items()}


def _named(wanted: list[str], others: list[str]) -> str:
    """The ends of the names where these say it, else a regex for the names within a block."""
    ends = sorted({name.rpartition(".")[2] for name in wanted})
    if not any(other.rpartition(".")[2] in ends for other in others):
        return ",".join(ends)
    return rf".*\.\d+\.(?:{'|'.join(map(re.escape, wanted))})"
