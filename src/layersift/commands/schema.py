"""`layersift schema`: the JSON schemas of layersift's files, for editors and other programs."""

from __future__ import annotations

from typing import Annotated

import typer


def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="recipe, selection or run.")],
) -> None:
    """Print the JSON schema of a recipe, of a selection file or of a run's record."""
    from layersift.records.selection import schema_of

    from .console import Console

    Console(as_json=True).result(schema_of(kind))
