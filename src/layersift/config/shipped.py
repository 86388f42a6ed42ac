"""The recipes that come with layersift: one YAML file each, named by its path under `recipes/`."""

from __future__ import annotations

from pathlib import Path

from layersift.errors import unknown_name

DIRECTORY = Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """All of them, sorted: ``glue/roberta-base/sst2`` and so on."""
    return sorted(path.relative_to(DIRECTORY).with_suffix("").as_posix() for path in DIRECTORY.rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The recipe's file: a file of the user's, or else one of ours by name, with or without ``recipes/`` and ``.yaml``.

    Raises:
        LayersiftError: neither; the message names the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    plain = name.removesuffix(".yaml").removeprefix("recipes/")
    known = recipe_names()
    if plain in known:
        return DIRECTORY / f"{plain}.yaml"
    if name.endswith((".yaml", ".yml")) and not name.startswith("recipes/"):
        return Path(name)  # the reader says that there is no such file
    raise unknown_name("recipe", name, known)
