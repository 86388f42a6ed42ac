"""What every artefact records about how it was made."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of layersift, Python and the packages whose behaviour decides the numbers."""
    from layersift._version import __version__

    return {"layersift": __version__, "python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def command() -> str:
    """The command line of this process, as one could type it again."""
    program = Path(sys.argv[0]).name
    return shlex.join(["layersift" if program == "__main__.py" else program, *sys.argv[1:]])


def machine() -> dict[str, str | int]:
    """What the times and memory were measured on."""
    import torch

    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0, "gpu": gpu}


def made_by() -> dict[str, object]:
    """Command, versions and machine, as every artefact of an experiment records them."""
    return {"command": command(), "versions": versions(), "machine": machine()}
