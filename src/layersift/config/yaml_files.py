"""YAML as settings come in it: numbers as YAML 1.2 writes them, and one line on whatever cannot be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from layersift.errors import LayersiftError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which 1e-3 is a number as it is in YAML 1.2 and in JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of some YAML.

    Raises:
        LayersiftError: it is none; the message begins with ``where``.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(f"{where}: not YAML ({str(error)[:200]})".split())
        raise LayersiftError(said) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        LayersiftError: no such file, or it holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LayersiftError(f"{path}: cannot read this file ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise LayersiftError(f"{path}: not YAML ({error})") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise LayersiftError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values
