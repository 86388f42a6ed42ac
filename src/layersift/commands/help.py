"""What `--help` shows of each command: a line that fits, an example, and its flags in groups."""

from __future__ import annotations

from typing import Any

SUMMARIES = {
    "inspect": "Show what would be adapted, read and paid for.",
    "advise": "Say what to train within a time or a memory.",
    "select": "Rank the layers, and select the most important.",
    "train": "Train adapters on all layers, or on some.",
    "evaluate": "Judge a trained run on rows of yours.",
    "predict": "Write a trained run's predictions.",
    "doctor": "Say what is wrong with a run, an adapter or a model.",
    "export": "Write a selection as another trainer's config.",
    "prune": "Keep the largest trained directions of a run.",
    "push": "Put a trained run on the Hub, with a card.",
    "benchmark": "Run lm-evaluation-harness on a run or a model.",
    "run": "Carry out a recipe: train, judge, one table.",
    "sweep": "Find out how many layers are enough.",
    "compare": "Compare rules that choose layers, with intervals.",
    "oracle": "Train every subset, and place each rule's choice.",
    "criteria": "List the rules that rank layers.",
    "recipes": "List or print the recipes that come along.",
    "schema": "Print the JSON schema of a file.",
    "demo": "Do the whole job on a small model.",
}
EXAMPLES = {
    "inspect": "inspect MODEL --data train.jsonl --show 3",
    "advise": "advise MODEL --data train.jsonl --time 0.6 -o advice",
    "select": "select MODEL --data train.jsonl -o selection.json",
    "train": "train MODEL --data train.jsonl --hold-back 0.2 -o run",
    "evaluate": "evaluate run --data test.jsonl",
    "predict": "predict run --data new.csv --keep id -o predictions.csv",
    "doctor": "doctor run",
    "export": "export selection.json --to axolotl",
    "prune": "prune run --params 1M -o small",
    "push": "push run user/name --base-model org/model",
    "benchmark": "benchmark run --tasks gsm8k --data test.jsonl",
    "run": "run recipe.yaml",
    "sweep": "sweep recipe.yaml",
    "compare": "compare recipe.yaml --criteria cka,fisher,last --seeds 3",
    "oracle": "oracle recipe.yaml --size 3",
    "criteria": "criteria",
    "recipes": "recipes math/llama-2-7b/lora",
    "schema": "schema recipe",
    "demo": "demo",
}
OF_SETTINGS = {
    "ModelSource": "Model",
    "DataSettings": "Data",
    "SelectSettings": "Selection",
    "TrainSettings": "Training",
    "ExportSettings": "Adapters",
    "WatchSettings": "While training",
    "EvaluateSettings": "Evaluation",
    "Limits": "Limits",
    "Devices": "Limits",
    "TrialSettings": "Trial",
    "CompareSettings": "Comparison",
}
SPEED = ("gradient_checkpointing", "precision", "activation_cache", "prefix_dropout", "shared_prompt")
CARRYING_OUT = ("jobs", "on", "gpus")
OUTPUT = ("output", "picture", "quiet", "json", "dry_run", "resume", "config", "help", "smoke", "merge", *CARRYING_OUT)


def panel_of(settings: type, field: str) -> str:
    """The group of a setting's flag."""
    if field in SPEED:
        return "Speed and memory"
    return OF_SETTINGS[settings.__name__]


def in_groups(command: Any, ctx: Any, formatter: Any) -> None:
    """Write the flags of a command, each group under its name."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None or parameter.param_type_name == "argument":
            continue
        other = "Output and others" if parameter.name in OUTPUT else "Options"
        groups.setdefault(getattr(parameter, "rich_help_panel", None) or other, []).append(record)
    last = groups.pop("Output and others", [])
    if len(groups) < 2:  # a command of few flags
        groups = {"Options": [record for of in (*groups.values(), last) for record in of]}
    elif last:
        groups["Output and others"] = last
    for name, records in groups.items():
        with formatter.section(name):
            formatter.write_dl(records)


def example_of(name: str) -> str:
    """A line that does what the command is for."""
    return f"Example: layersift {EXAMPLES[name]}"
