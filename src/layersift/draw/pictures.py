"""Altair, and charts as pictures: PNG, SVG or PDF, without a browser."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from layersift.errors import LayersiftError

BLUE, ORANGE, GREY, RED = "#4c78a8", "#f58518", "#9aa0a6", "#d62728"
SUFFIXES = (".png", ".svg", ".pdf")


def altair() -> Any:
    """The library, imported when something is drawn: it takes half a second."""
    import altair as alt

    return alt


def rows_of(values: list[dict[str, Any]]) -> Any:
    """Rows as Altair takes them."""
    return altair().Data(values=values)


def require_picture(path: Path) -> None:
    """Refuse kinds of pictures that cannot be written, before the work is done.

    Raises:
        LayersiftError: another ending than .png, .svg or .pdf.
    """
    if path.suffix not in SUFFIXES:
        raise LayersiftError(f"{path}: unknown kind of picture {path.suffix!r}; known: {', '.join(SUFFIXES)}")


def picture(chart: Any, suffix: str) -> bytes:
    """A chart of fixed size as a picture on white; ``suffix`` is one of `SUFFIXES`."""
    import vl_convert

    spec = chart.configure(background="white").to_json()
    if suffix == ".svg":
        return vl_convert.vegalite_to_svg(spec).encode()
    if suffix == ".pdf":
        return bytes(vl_convert.vegalite_to_pdf(spec))
    return _in_few_colours(bytes(vl_convert.vegalite_to_png(spec, scale=2)))


def _in_few_colours(png: bytes) -> bytes:
    """The picture with a palette of 256 colours: a tenth of the bytes, and the same to the eye."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as drawn:
        flat = drawn.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        flat.save(file, "PNG", optimize=True)
    return file.getvalue()
