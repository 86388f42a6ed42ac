"""Calls of the public functions that cannot be carried out, each with what the message has to name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, PrefixTuningConfig

import layersift as ls


@dataclass(frozen=True)
class BadCall:
    """A call with what is at hand (:func:`at_hand`), and what the error must hold, in any case of letters."""

    name: str
    call: Callable[[Any], Any]
    names: tuple[str, ...]


def at_hand() -> SimpleNamespace:
    """A small model, its tokenizer, rows, batches and a selection, made anew since calls may change them."""
    from bad.place import labelled
    from tiny import tiny
    from words import tokenizer

    model, rows = tiny("bert"), labelled()
    batch = {"input_ids": torch.ones(8, 5, dtype=torch.long), "attention_mask": torch.ones(8, 5, dtype=torch.long)}
    return SimpleNamespace(
        model=model,
        tokenizer=tokenizer(),
        rows=rows,
        batch=batch,
        stack=ls.find_stack(model),
        selection=ls.Selection.load("selection.json"),
    )


def _select(**settings: Any) -> Callable[[Any], Any]:
    return lambda t: ls.select_layers(t.model, t.rows, t.tokenizer, **settings)


def _rows(rows: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda t: ls.select_layers(t.model, rows(t), t.tokenizer)


def _with(**changes: Any) -> Callable[[Any], Any]:
    """A batch with other entries; None takes one out."""

    def call(t: Any) -> Any:
        batch = {k: v for k, v in (t.batch | changes).items() if v is not None}
        return ls.select_layers(t.model, [batch], t.tokenizer)

    return call


def _attach(config: Callable[[], Any], **options: Any) -> Callable[[Any], Any]:
    return lambda t: t.selection.attach(t.model, config(), **options)


def _plan(**size: Any) -> Callable[[Any], Any]:
    made = {"kind": "classification", "batch_size": 2, "tokens": 8} | size
    return lambda t: ls.Planner(t.model, t.stack, LoraConfig(r=4)).step((1, 3), ls.StepSize(**made))


SETTINGS: list[tuple[Any, dict[str, Any], str]] = [
    (ls.SelectSettings, {"ratio": float("nan")}, "ratio"),
    (ls.SelectSettings, {"ratio": "half"}, "ratio"),
    (ls.SelectSettings, {"top_n": 1.5}, "top-n"),
    (ls.SelectSettings, {"top_n": True}, "top-n"),
    (ls.SelectSettings, {"seed": None}, "seed"),
    (ls.SelectSettings, {"seed": 2**70}, "seed"),
    (ls.SelectSettings, {"max_samples": "128"}, "max-samples"),
    (ls.SelectSettings, {"until_stable": 2}, "until-stable"),
    (ls.SelectSettings, {"tower": ""}, "tower"),
    (ls.SelectSettings, {"budget_params": []}, "budget-params"),
    (ls.TrainSettings, {"epochs": float("inf")}, "epochs"),
    (ls.TrainSettings, {"learning_rate": -1}, "learning-rate"),
    (ls.TrainSettings, {"rank": 0}, "rank"),
    (ls.TrainSettings, {"rank": None}, "rank"),
    (ls.TrainSettings, {"alpha": "16"}, "alpha"),
    (ls.TrainSettings, {"method_options": [1]}, "method-options"),
    (ls.TrainSettings, {"ranks": {"attention": "x"}}, "ranks"),
    (ls.TrainSettings, {"precision": "fp4"}, "precision"),
    (ls.TrainSettings, {"batch_size": 10**9}, "batch-size"),
    (ls.DataSettings, {"data": 5}, "data"),
    (ls.DataSettings, {"data": "x", "max_length": 0}, "max-length"),
    (ls.DataSettings, {"data": "x", "task": "poetry"}, "poetry"),
    (ls.DataSettings, {"data": "x", "split": 1}, "split"),
    (ls.ModelSource, {"name": ""}, "model"),
    (ls.ModelSource, {"name": "bert", "device": "gpu"}, "gpu"),
    (ls.ModelSource, {"name": "bert", "dtype": "int4"}, "int4"),
    (ls.ModelSource, {"name": None}, "name"),
    (ls.EvaluateSettings, {"metrics": "accuracy"}, "metrics"),
    (ls.EvaluateSettings, {"max_samples": 0}, "max-samples"),
    (ls.CompareSettings, {"seeds": 0}, "seeds"),
    (ls.CompareSettings, {"criteria": ["cka", "cka"]}, "cka"),
    (ls.CompareSettings, {"learning_rates": [0]}, "learning-rates"),
]
NAMED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "select_layers: a ratio of nothing": (_select(ratio=0.0), "ratio"),
    "select_layers: more layers than there are": (_select(top_n=99), "99"),
    "select_layers: two limits": (_select(top_n=1, ratio=0.5), "one of"),
    "select_layers: a setting that is none": (_select(topn=1), "topn"),
    "select_layers: no such criterion": (_select(criterion="ckaa"), "ckaa"),
    "select_layers: no such position": (_select(position="nowhere"), "nowhere"),
    "select_layers: no such tower": (_select(tower="cellar"), "cellar"),
    "select_layers: a budget without a config": (_select(budget_params="2k"), "adapter"),
    "select_layers: an unknown column": (_select(columns={"text": "nope"}), "nope"),
    "select_layers: a role that is none": (_select(columns={"texts": "text"}), "texts"),
    "select_layers: no such task": (_select(task="poetry"), "poetry"),
    "select_layers: no room": (_select(max_length=1), "max-length"),
    "select_layers: a rule that raises": (_select(criterion=lambda context: 1 / 0), "division"),
    "select_layers: a rule with too few scores": (_select(criterion=lambda context: [1.0]), "4 layers"),
    "select_layers: a rule of words": (_select(criterion=lambda context: ["a"] * 4), "number"),
    "select_layers: no rows": (_rows(lambda t: []), "rows"),
    "select_layers: few rows": (_rows(lambda t: t.rows[:3]), "8"),
    "select_layers: rows that are lists": (_rows(lambda t: [[1, 2]] * 9), "dict"),
    "select_layers: a number for data": (_rows(lambda t: 7), "7"),
    "select_layers: nothing for data": (_rows(lambda t: None), "None"),
    "select_layers: a text for data": (_rows(lambda t: "rows.jsonl"), "rows.jsonl"),
    "select_layers: several splits": (_rows(lambda t: {"train": t.rows}), "train"),
    "select_layers: texts that are numbers": (_rows(lambda t: [r | {"text": 3} for r in t.rows]), "text"),
    "select_layers: labels that are lists": (_rows(lambda t: [r | {"label": [1]} for r in t.rows]), "label"),
    "select_layers: a lone surrogate": (_rows(lambda t: [r | {"text": "\ud800"} for r in t.rows]), "row"),
    "select_layers: no tokenizer": (lambda t: ls.select_layers(t.model, t.rows), "tokenizer"),
    "select_layers: no transformer": (
        lambda t: ls.select_layers(torch.nn.Linear(2, 2), t.rows, t.tokenizer),
        "Linear",
    ),
    "select_layers: no model": (lambda t: ls.select_layers(None, t.rows, t.tokenizer), "None"),
    "select_layers: batches without tokens": (_with(input_ids=None), "input_ids"),
    "select_layers: batches of one dimension": (_with(input_ids=torch.ones(8)), "shape"),
    "select_layers: unknown tokens": (_with(input_ids=torch.arange(500, 540).view(8, 5)), "539"),
    "select_layers: fractions for tokens": (_with(input_ids=torch.full((8, 5), 0.5)), "input_ids"),
    "select_layers: a mask of another shape": (_with(attention_mask=torch.ones(8, 9)), "attention_mask"),
    "select_layers: an empty mask": (_with(attention_mask=torch.zeros(8, 5)), "no tokens"),
    "select_layers: labels of another shape": (_with(labels=torch.ones(8, 9, dtype=torch.long)), "labels"),
    "read_representations: no such position": (
        lambda t: ls.read_representations(t.model, t.stack, [t.batch], ["nowhere"]),
        "nowhere",
    ),
    "read_representations: no batches": (lambda t: ls.read_representations(t.model, t.stack, []), "batches"),
    "read_representations: rows for batches": (
        lambda t: ls.read_representations(t.model, t.stack, t.rows),
        "input_ids",
    ),
    "find_stack: no such tower": (lambda t: ls.find_stack(t.model, "cellar"), "cellar"),
    "find_stack: no blocks": (lambda t: ls.find_stack(torch.nn.Linear(2, 2)), "Linear"),
    "find_stacks: no blocks": (lambda t: ls.find_stacks(torch.nn.Sequential()), "Sequential"),
    "find_criterion: no such name": (lambda t: ls.find_criterion("nope"), "nope"),
    "find_criterion: no such position": (lambda t: ls.find_criterion("cka@nope"), "nope"),
    "find_criterion: no such file": (lambda t: ls.find_criterion("rules/gone.py:mine"), "gone.py"),
    "find_criterion: a number": (lambda t: ls.find_criterion(5), "5"),
    "Selection.load: no such file": (lambda t: ls.Selection.load("nowhere.json"), "nowhere.json"),
    "Selection.load: a directory": (lambda t: ls.Selection.load("exists"), "exists"),
    "Selection.load: rows": (lambda t: ls.Selection.load("rows.jsonl"), "rows.jsonl"),
    "Selection: layers beyond": (lambda t: replace(t.selection, selected_layers=(9,)), "9"),
    "Selection: no layers": (lambda t: replace(t.selection, selected_layers=()), "no layer"),
    "Selection: an importance too few": (lambda t: replace(t.selection, importance=(1.0,)), "importance"),
    "Selection.stack: another model": (lambda t: t.selection.stack(torch.nn.Linear(2, 2)), "Linear"),
    "attach: prefix tuning": (_attach(lambda: PrefixTuningConfig(num_virtual_tokens=4)), "target_modules"),
    "attach: layers of its own": (
        _attach(lambda: LoraConfig(layers_to_transform=[0], target_modules=["query"])),
        "layers_to_transform",
    ),
    "attach: no such modules": (_attach(lambda: LoraConfig(target_modules=["nope"])), "nope"),
    "attach: no regex": (_attach(lambda: LoraConfig(target_modules="[")), "["),
    "attach: norms": (_attach(lambda: LoraConfig(target_modules=["LayerNorm"])), "LayerNorm"),
    "attach: a head that is not there": (_attach(lambda: LoraConfig(modules_to_save=["nope"])), "nope"),
    "attach: eva without data": (_attach(lambda: LoraConfig(init_lora_weights="eva")), "batches"),
    "attach: a rank of nothing": (_attach(lambda: LoraConfig(r=0, target_modules=["query"])), "r"),
    "attach: twice": (
        lambda t: [t.selection.attach(t.model, LoraConfig(target_modules=["query"])) for _ in range(2)],
        "adapters already",
    ),
    "peft_config: no such modules": (
        lambda t: t.selection.peft_config(t.model, LoraConfig(target_modules=["nope"])),
        "nope",
    ),
    "plan: no samples": (_plan(batch_size=0), "batch"),
    "plan: no tokens": (_plan(tokens=-1), "tokens"),
    "plan: no such task": (_plan(kind="poetry"), "poetry"),
    "plan: layers beyond": (
        lambda t: ls.Planner(t.model, t.stack, LoraConfig(r=4)).step((9,), ls.StepSize("classification", 2, 8)),
        "9",
    ),
    "train: no such model": (lambda t: ls.train("./nowhere", "rows.jsonl", t.selection, "new"), "./nowhere"),
    "train: no such data": (lambda t: ls.train("bert", "nowhere.jsonl", t.selection, "new"), "nowhere.jsonl"),
    "train: an output that exists": (lambda t: ls.train("bert", "rows.jsonl", t.selection, "exists"), "exists"),
    "train: an output in a file": (lambda t: ls.train("bert", "rows.jsonl", t.selection, "file/new"), "file"),
    "train: another model's selection": (
        lambda t: ls.train("bert", "rows.jsonl", replace(t.selection, num_layers=12, **_TWELVE), "new"),
        "12 layers",
    ),
    "train: a method that is none": (
        lambda t: ls.train("bert", "rows.jsonl", t.selection, "new", ls.TrainSettings(method="lorra")),
        "lorra",
    ),
    "train: a negative seed": (lambda t: ls.train("bert", "rows.jsonl", t.selection, "new", seed=-1), "seed"),
    "evaluate: no such run": (lambda t: ls.evaluate("nowhere", "rows.jsonl"), "nowhere"),
    "evaluate: a model for a run": (lambda t: ls.evaluate("bert", "rows.jsonl"), "bert"),
    "evaluate: no such data": (lambda t: ls.evaluate("run", "nowhere.jsonl"), "nowhere.jsonl"),
    "evaluate: no such device": (lambda t: ls.evaluate("run", "rows.jsonl", device="gpu"), "gpu"),
    "evaluate: no samples": (lambda t: ls.evaluate("run", "rows.jsonl", max_samples=0), "max_samples"),
    "load_run: no such run": (lambda t: ls.load_run("nowhere"), "nowhere"),
    "RunRecord.load: no such run": (lambda t: ls.RunRecord.load(_path("nowhere")), "nowhere"),
    "read_recipe: no such file": (lambda t: ls.read_recipe(_path("nowhere.yaml")), "nowhere.yaml"),
    "read_recipe: rows": (lambda t: ls.read_recipe(_path("rows.jsonl")), "rows.jsonl"),
    "read_recipe: a list": (lambda t: ls.read_recipe(_path("recipes/list.yaml")), "list.yaml"),
    "read_recipe: no such section": (lambda t: ls.read_recipe(_path("recipe.yaml"), ["trian.epochs=1"]), "trian"),
    "run: no jobs": (lambda t: ls.run(ls.read_recipe(_path("recipe.yaml")), 0), "jobs"),
    "run: no such model": (
        lambda t: ls.run(ls.read_recipe(_path("recipe.yaml"), ["model=./nowhere"])),
        "./nowhere",
    ),
    "compare: more layers than there are": (
        lambda t: ls.compare(ls.read_recipe(_path("recipe.yaml"), ["compare.sizes=[9]"])),
        "9",
    ),
    "compare: no such criterion": (
        lambda t: ls.compare(ls.read_recipe(_path("recipe.yaml"), ["compare.criteria=[nope]"])),
        "nope",
    ),
}
_TWELVE = {
    "selected_layers": (2, 3),
    "importance": (None,) * 12,
    "top_dimension_share": (None,) * 12,
    "undefined": {},
}


def _path(name: str) -> Any:
    from pathlib import Path

    return Path(name)


def _settings(cls: Any, values: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda t: cls(**values)


CALLS = [BadCall(f"{cls.__name__} {values}", _settings(cls, values), (said,)) for cls, values, said in SETTINGS]
CALLS += [BadCall(name, call, (said,)) for name, (call, said) in NAMED.items()]
