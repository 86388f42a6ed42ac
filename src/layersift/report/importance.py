"""The importance of each layer as a picture, apart from what experiments leave: `select` needs nothing of those."""

from __future__ import annotations

from pathlib import Path

from layersift.draw.pictures import picture
from layersift.files import write_bytes
from layersift.records.selection import Selection


def write_importance(selection: Selection, path: Path) -> None:
    """The importance of each layer as a picture, in the format of its ending."""
    write_bytes(path, picture(selection.plot(), path.suffix))
