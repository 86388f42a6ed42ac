"""Where a model lies, and what to give where none does."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from layersift.config.inputs import ModelSource
from layersift.errors import ModelError
from layersift.load.gguf import converted_gguf


def locate(source: ModelSource) -> str:
    """What transformers is to load: a directory, or a Hub id as it was given.

    Raises:
        ModelError: no such file, or a directory without a model.
    """
    path = Path(source.name).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return str(converted_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{source.name}: no config.json in this directory; {_instead(path)}")
        return str(path)
    if path.is_file():
        raise ModelError(f"{source.name}: expected a directory, a Hub id or a .gguf file")
    if path.suffix.lower() == ".gguf" or source.name.startswith((".", "/", "~")) or source.name.count("/") > 1:
        raise ModelError(f"{source.name}: no such file or directory")
    return source.name


def _instead(directory: Path) -> str:
    """What to give instead of a directory without a model in it."""
    if (directory / "adapter_config.json").is_file():
        base = None
        with suppress(ValueError, OSError, AttributeError):
            base = json.loads((directory / "adapter_config.json").read_text()).get("base_model_name_or_path")
        return f"it holds adapters: give their base model{f', {base}' if base else ''}, or the merged one"
    if within := sorted(file.parent.name for file in directory.glob("*/config.json")):
        return f"give the model within it, {directory.name}/{within[0]}"
    return "expected a saved transformers model"
