"""YAML as settings come in it: numbers as YAML 1.2 writes them, and one line on whatever cannot be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from layersift.errors import LayersiftError, wrap_library_errors
from layersift.files import require_regular


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which 1e-3 is a number as it is in YAML 1.2 and in JSON, and no key comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"key {twice[0]!r} is given twice")
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


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
    with wrap_library_errors(LayersiftError, f"{' '.join(where.split())}: not YAML"):
        return yaml.load(text, _Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        LayersiftError: no such file, or it holds something else.
    """
    require_regular(path, "a YAML file")
    with wrap_library_errors(LayersiftError, f"{path}: not YAML"):
        text = path.read_text(encoding="utf-8")
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise LayersiftError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values
