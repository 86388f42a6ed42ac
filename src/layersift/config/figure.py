"""A figure's YAML file: which recipes to carry out, with which arms, and what to draw of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from layersift.config.fields import Checked, read_as
from layersift.config.yaml_files import read_yaml
from layersift.errors import LayersiftError, unknown_name

FigureKind = Literal["tradeoff", "similarity", "arms", "sweep"]
FIGURE_KINDS: tuple[FigureKind, ...] = ("tradeoff", "similarity", "arms", "sweep")


@dataclass(frozen=True)
class FigureRecipe(Checked):
    """Several recipes, drawn together."""

    figure: Annotated[FigureKind, Meta(description="What is drawn.")]
    recipes: Annotated[tuple[str, ...], Meta(description="Files, or names from `layersift recipes`.")]
    arms: Annotated[tuple[str, ...], Meta(description="The arms that each of them is carried out with.")]
    output: Annotated[str, Meta(description="The directory that all of it is kept in.")] = ""
    about: Annotated[str, Meta(description="For people.")] = ""

    def __post_init__(self) -> None:
        if self.figure not in FIGURE_KINDS:
            raise unknown_name("figure", str(self.figure), FIGURE_KINDS)
        super().__post_init__()


def is_figure(path: Path) -> bool:
    """Whether a recipe's file describes a figure."""
    return "figure" in read_yaml(path)


def read_figure(path: Path, output: str | None = None) -> FigureRecipe:
    """The figure of a YAML file.

    Raises:
        LayersiftError: the file, a key or a value cannot be used.
    """
    values = read_yaml(path) | ({"output": output} if output else {})
    if (kind := values.get("figure")) not in FIGURE_KINDS:
        raise unknown_name("figure", str(kind), FIGURE_KINDS)
    figure = read_as(FigureRecipe, values, str(path))
    if not figure.output:
        raise LayersiftError(f"{path}: 'output' is missing")
    return figure
