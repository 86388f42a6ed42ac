"""Find the layers that should carry the adapters for your task, train only those, and see whether it held."""

import logging
from typing import Any

from ._version import __version__

logging.getLogger(__name__).addHandler(logging.NullHandler())

# Each public name and where it lives; docs/api.md describes them. A name is imported on first use, since the command
# line's --help must not wait for torch.
_HOMES = {
    "AdapterError": "errors",
    "BlockStack": "models.stacks",
    "CRITERIA": "score.registry",
    "CompareSettings": "config.variants",
    "Comparison": "experiment.compare",
    "Criterion": "score.criterion",
    "DataError": "errors",
    "DataSettings": "config.recipe",
    "EvaluateSettings": "config.recipe",
    "Evaluation": "evaluation.metrics",
    "FrozenPrefix": "step.callback",
    "LayerScores": "records.selection",
    "LayersiftError": "errors",
    "Length": "plan.training",
    "MEASURES": "measures",
    "Measure": "measures",
    "ModelError": "errors",
    "ModelSource": "config.recipe",
    "POSITIONS": "represent.positions",
    "Plan": "plan.planner",
    "Planner": "plan.planner",
    "Recipe": "config.recipe",
    "Representations": "represent.read",
    "RunRecord": "records.runs",
    "ScoringContext": "score.context",
    "SelectSettings": "config.select",
    "Selection": "records.selection",
    "SelectionError": "errors",
    "StepSize": "plan.training",
    "Strategy": "config.train",
    "TOKEN_MEASURES": "measures",
    "TokenMeasure": "measures",
    "TrainSettings": "config.train",
    "TrainingError": "errors",
    "TrainingPlan": "plan.training",
    "TrainingStrategy": "step.strategy",
    "Undefined": "score.probe",
    "compare": "experiment.compare",
    "evaluate": "api",
    "find_criterion": "score.registry",
    "find_stack": "models.stacks",
    "find_stacks": "models.stacks",
    "load_run": "evaluation.load_run",
    "parse_strategy": "config.train",
    "predict": "api",
    "push_to_hub": "export.publish",
    "read_recipe": "config.recipe",
    "read_representations": "api",
    "run": "experiment.run",
    "score_layers": "score.criterion",
    "select_layers": "select_in_memory",
    "train": "api",
}
__all__ = ["__version__", *_HOMES]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
