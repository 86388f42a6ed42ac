"""What every artefact records about how it was made."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of layersift, Python and the packages whose behaviour decides the numbers."""
    from ._version import __version__

    return {"layersift": __version__, "python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def command() -> str:
    """The command line of this process, as one could type it again."""
    program = Path(sys.argv[0]).name
    return shlex.join(["layersift" if program == "__main__.py" else program, *sys.argv[1:]])
