"""`layersift recipes`: what can be run by name."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one.")] = None,
    json: o.Json = False,
) -> None:
    """List the recipes that come with layersift, or print one: what the paper reports, what it needs, its settings."""
    from layersift.compare import shelf

    from .screen import Screen

    screen = Screen(as_json=json)
    if name is None:
        screen.say("\n".join(shelf.names()))
        screen.result(shelf.names())
        return
    text = shelf.find(name).read_text(encoding="utf-8")
    screen.say(text.rstrip("\n"))
    screen.result(text)
