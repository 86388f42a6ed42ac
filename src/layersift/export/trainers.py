"""Every trainer's own words for a placement. Keys: of the versions in docs/export.md, whose parsers the tests run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from layersift.errors import AdapterError, unknown_name
from layersift.export import config_modules as read
from layersift.export.config_modules import Section, Wanted
from layersift.export.source import Placement

Fragment = dict[str, Any]
VARIANTS = ("use_rslora", "use_dora")  # of LoRA, by PEFT's fields


@dataclass(frozen=True)
class Trainer:
    """What a trainer calls things, and what it cannot say."""

    title: str
    fragment: Callable[[Placement], Fragment]  # by the keys of its config, or arguments of its function
    call: str = ""  # the Python to write; empty: it reads YAML
    arguments: str = ""  # of Python, the call that takes how a training goes
    section: str = ""  # of its config that holds what is about adapters; empty: the whole
    # What a config of the trainer's says already, which `--into` keeps.
    names: Mapping[str, str] = field(default_factory=dict)  # its keys by ours
    defaults: Mapping[str, float] = field(default_factory=dict)  # of what it leaves open, by ours
    wanted: Callable[[Section], Wanted] = lambda section: Wanted("")  # its modules
    default_modules: str = "PEFT's for the model"  # where it names none
    switch: str = ""  # its key that says what is trained
    switch_inside: bool = False  # that key stands in the section
    on: tuple[Any, ...] = ()  # values of that key with which it is LoRA
    by_default: bool = False  # it is LoRA where the key is missing
    targets: tuple[str, ...] = ()  # keys that name the modules; those that go are replaced by their full names
    superseded: tuple[str, ...] = ()  # keys that choose other layers, which go
    fixed: tuple[str, ...] = ()  # keys that have to be as the selection says
    whole_alpha: bool = True  # takes no fractions
    experts: bool = False  # takes parameters that hold stacked experts
    ranks: bool = False  # takes ranks by module
    rooted: bool = True  # takes rsLoRA's scale
    layers: bool = False  # takes layers beside the ends of names
    peft: bool = True  # adapts through PEFT


def _through_peft(names: Mapping[str, str]) -> Callable[[Placement], Fragment]:
    """Of a trainer that hands its keys on to PEFT; ``names`` are its keys by PEFT's."""

    def fragment(placement: Placement) -> Fragment:
        config = placement.config
        values: Fragment = {"r": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
        values |= {name: True for name in VARIANTS if getattr(config, name)}
        values["task_type"] = str(config.task_type.value if hasattr(config.task_type, "value") else config.task_type)
        if placement.by_names:
            values["target_modules"] = list(placement.modules)
        else:
            values["target_modules"] = config.target_modules
            values["layers_to_transform"] = config.layers_to_transform
            values["layers_pattern"] = [config.layers_pattern] if config.layers_pattern else None
        values["target_parameters"] = list(placement.parameters)
        values["rank_pattern"], values["alpha_pattern"] = config.rank_pattern, config.alpha_pattern
        return {names[name]: value for name, value in values.items() if name in names and value not in (None, [], {})}

    return fragment


def _own(*names: str, **others: str) -> dict[str, str]:
    """PEFT's names that a trainer keeps, and those that it calls otherwise."""
    return {name: name for name in names} | others


_PEFT = _own("r", "lora_alpha", "lora_dropout", "target_modules", "target_parameters")
_PEFT |= _own("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", *VARIANTS)
_TRL = _own("lora_alpha", "lora_dropout", *VARIANTS, r="lora_r", target_modules="lora_target_modules")
_TRL |= {"target_parameters": "lora_target_parameters", "task_type": "lora_task_type"}
_AXOLOTL = _own("lora_alpha", "lora_dropout", r="lora_r", target_modules="lora_target_modules")
_AXOLOTL |= {name: f"lora_{name}" for name in ("target_parameters", "rank_pattern", "alpha_pattern")}
_AXOLOTL |= {name: f"peft_{name}" for name in ("layers_to_transform", "layers_pattern", *VARIANTS)}
_SWIFT = _own("lora_alpha", "lora_dropout", "target_modules", "target_parameters", *VARIANTS, r="lora_rank")


def _trl(placement: Placement) -> Fragment:
    fragment = {"use_peft": True, **_through_peft(_TRL)(placement)}
    if len(placement.modules) == 1:  # a list of one is taken for a regex
        fragment["lora_target_modules"] = [placement.modules[0].replace(".", r"\.")]
    return fragment


def _axolotl(placement: Placement) -> Fragment:
    fragment = {"adapter": "lora", **_through_peft(_AXOLOTL)(placement)}
    if "lora_alpha_pattern" in fragment:
        fragment["lora_alpha_pattern"] = {name: int(alpha) for name, alpha in fragment["lora_alpha_pattern"].items()}
    return fragment


def _llamafactory(placement: Placement) -> Fragment:
    fragment: Fragment = {
        "finetuning_type": "lora",
        "lora_rank": placement.rank,
        "lora_alpha": int(placement.alpha),
        "lora_dropout": placement.config.lora_dropout,
        "lora_target": ",".join(placement.modules),
    }
    fragment |= {name: True for name in VARIANTS if getattr(placement.config, name)}
    if "vision" in placement.selection.tower.split("+"):
        fragment["freeze_vision_tower"] = False
    return fragment


_NEMO = "nemo_automodel.components._peft.lora.PeftConfig"


def _nemo(placement: Placement) -> Fragment:
    values = {
        "_target_": _NEMO,
        "target_modules": list(placement.modules),
        "dim": placement.rank,
        "alpha": int(placement.alpha),
        "dropout": placement.config.lora_dropout,
        **({"use_dora": True} if placement.config.use_dora else {}),
    }
    return {"peft": values}


def _mlx(placement: Placement) -> Fragment:
    values = {
        "keys": list(placement.modules),
        "rank": placement.rank,
        "scale": placement.alpha / (math.sqrt(placement.rank) if placement.config.use_rslora else placement.rank),
        "dropout": placement.config.lora_dropout,
    }
    kind = "dora" if placement.config.use_dora else "lora"
    return {"fine_tune_type": kind, "num_layers": -1, "lora_parameters": values}


_LORA = {"rank": "lora_r", "alpha": "lora_alpha", "dropout": "lora_dropout", "use_dora": "use_dora"}
_LORA_RANK = _LORA | {"rank": "lora_rank"}
TRAINERS: dict[str, Trainer] = {
    "peft": Trainer(
        "PEFT",
        _through_peft(_PEFT | _own("task_type")),
        call="from peft import LoraConfig\n\nconfig = LoraConfig({})",
        arguments="from transformers import TrainingArguments\n\narguments = TrainingArguments({})",
        whole_alpha=False,
        experts=True,
        ranks=True,
        layers=True,
    ),
    "trl": Trainer(
        "TRL",
        _trl,
        names=_LORA,
        defaults={"rank": 16, "alpha": 32, "dropout": 0.05},
        wanted=read.of_trl,
        switch="use_peft",
        on=(True,),
        targets=("lora_target_modules", "lora_target_parameters"),
        fixed=("lora_task_type",),
        experts=True,
    ),
    "axolotl": Trainer(
        "Axolotl",
        _axolotl,
        names=_LORA
        | {
            "use_dora": "peft_use_dora",
            "rank_pattern": "lora_rank_pattern",
            "alpha_pattern": "lora_alpha_pattern",
        },
        defaults={"dropout": 0},
        wanted=read.of_axolotl,
        switch="adapter",
        on=("lora", "qlora"),
        targets=("lora_target_modules", "lora_target_linear", "lora_target_parameters"),
        superseded=("peft_layers_to_transform", "peft_layers_pattern", "unfrozen_parameters"),
        experts=True,
        ranks=True,
        layers=True,
    ),
    "llamafactory": Trainer(
        "LLaMA-Factory",
        _llamafactory,
        names=_LORA_RANK,
        defaults={"rank": 8, "scale": 2, "dropout": 0},
        wanted=read.of_llamafactory,
        default_modules="all",
        switch="finetuning_type",
        on=("lora",),
        by_default=True,
        targets=("lora_target",),
        superseded=("use_llama_pro",),
    ),
    "unsloth": Trainer(
        "Unsloth",
        _through_peft(_PEFT),
        call="from unsloth import FastLanguageModel\n\nmodel = FastLanguageModel.get_peft_model(\n    model,{})",
        arguments="from trl import SFTConfig\n\narguments = SFTConfig({})",
        experts=True,
        ranks=True,
        layers=True,
        whole_alpha=False,
    ),
    "ms-swift": Trainer(
        "ms-swift",
        lambda placement: {"tuner_type": "lora", **_through_peft(_SWIFT)(placement)},
        names=_LORA_RANK,
        defaults={"rank": 8, "alpha": 32, "dropout": 0.05},
        wanted=read.of_swift,
        default_modules="all-linear",
        switch="tuner_type",
        on=("lora",),
        by_default=True,
        targets=("target_modules", "target_regex", "target_parameters"),
        experts=True,
        whole_alpha=False,
    ),
    "nemo": Trainer(
        "NeMo Automodel",
        _nemo,
        section="peft",
        names={"rank": "dim", "alpha": "alpha", "dropout": "dropout", "use_dora": "use_dora"},
        defaults={"rank": 8, "alpha": 32, "dropout": 0},
        wanted=read.of_nemo,
        default_modules="*_proj",
        switch="_target_",
        switch_inside=True,
        on=(_NEMO,),
        targets=("target_modules", "exclude_modules", "match_all_linear"),
        rooted=False,
        peft=False,
    ),
    "mlx": Trainer(
        "mlx-lm",
        _mlx,
        section="lora_parameters",
        names={"rank": "rank", "scale": "scale", "dropout": "dropout"},  # scale of updates: alpha / rank
        defaults={"rank": 8, "scale": 20, "dropout": 0},
        wanted=read.of_mlx,
        default_modules="all linear ones",
        switch="fine_tune_type",
        on=("lora", "dora"),
        by_default=True,
        targets=("keys",),
        whole_alpha=False,
        peft=False,
    ),
}


def find_trainer(name: str) -> Trainer:
    """The trainer of that name.

    Raises:
        LayersiftError: none of those that are known.
    """
    if name not in TRAINERS:
        raise unknown_name("trainer", name, [*TRAINERS, "serving"])
    return TRAINERS[name]


def fragment_for(trainer: Trainer, placement: Placement) -> Fragment:
    """The part of a trainer's config that adapts exactly these modules there.

    Raises:
        AdapterError: the trainer has no words for it; the message says for what, and which others have.
    """
    others = ", ".join(name for name, t in TRAINERS.items() if t.ranks and t.experts)
    cannot = ""
    if placement.ranks and not trainer.ranks:
        cannot = f"has one rank for all modules; this selection has others for {len(placement.ranks)} of them"
    elif placement.parameters and not trainer.experts:
        cannot = f"adapts modules alone, and {placement.parameters[0]} is a parameter that holds stacked experts"
    elif trainer.peft and not placement.by_names and not trainer.layers:
        cannot = "takes names alone, of which PEFT makes other targets in this mixture of experts"
    elif placement.config.use_rslora and not trainer.rooted:
        cannot = "scales by alpha / rank alone, not by rsLoRA's alpha / sqrt(rank)"
    if cannot:
        raise AdapterError(f"{trainer.title} {cannot}; --to {others} can say it, or give other --target-modules")
    alphas = [placement.alpha, *placement.config.alpha_pattern.values()]
    if trainer.whole_alpha and any(alpha != int(alpha) for alpha in alphas):
        bad = next(alpha for alpha in alphas if alpha != int(alpha))
        raise AdapterError(
            f"{trainer.title} takes a whole number for alpha, not {bad:g}; give another --alpha or --rank"
        )
    if trainer is TRAINERS["llamafactory"] and placement.inside_others:
        raise AdapterError(
            f"LLaMA-Factory looks for names within names, and would adapt {placement.inside_others[0]} as well; "
            f"--to {others} do not"
        )
    return trainer.fragment(placement)
