"""What cells of data sources hold: plain values of Arrow, NumPy and `datasets`; images as paths, bytes or pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from layersift.errors import DataError, wrap_library_errors

# Files that count as images in a folder of classes.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


def image_bytes(value: Any, source: str) -> bytes:
    """The encoded file of an image; a picture already open gives its pixels.

    Args:
        value: a path, a dict with ``bytes`` or ``path``, or a PIL image.
        source: the data's own file or directory; paths are relative to where it lies.

    Raises:
        DataError: no such file, or something else than an image.
    """
    if isinstance(value, dict) and isinstance(content := value.get("bytes"), bytes | bytearray):
        return bytes(content)
    if isinstance(value, Image.Image):
        return f"{value.mode}{value.size}".encode() + value.tobytes()
    if isinstance(value, dict):
        value = value.get("path")
    if not isinstance(value, str):
        raise DataError(f"{source}: expected an image (a path, or bytes), got {type(value).__name__}")
    beside = _beside(source)
    with wrap_library_errors(
        DataError,
        f"{source}: cannot read the image {value}",
        "paths count from where the data lie; see who may read it",
    ):
        if not (beside / value).is_file():  # of a pipe there is no end
            raise FileNotFoundError("no such file")
        return (beside / value).read_bytes()


def open_image(value: Any, source: str) -> Image.Image:
    """The image in RGB; see :func:`image_bytes`.

    Raises:
        DataError: it cannot be read.
    """
    if isinstance(value, Image.Image):
        return ImageOps.exif_transpose(value).convert("RGB")  # as people see a photograph, however the camera lay
    content = image_bytes(value, source)
    with wrap_library_errors(
        DataError,
        f"{source}: {_named(value)} is not an image that can be read",
        "save it again as .png or .jpg, or leave the row out",
    ):
        return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")


def with_whole_paths(value: Any, source: str) -> Any:
    """An image, or a list of them, as its column holds it, but with paths that do not depend on where ``source`` is."""
    if isinstance(value, list):
        return [with_whole_paths(each, source) for each in value]
    if isinstance(value, dict) and value.get("bytes") is None and isinstance(value.get("path"), str):
        return {**value, "path": with_whole_paths(value["path"], source)}
    if isinstance(value, str):
        return str((_beside(source) / value).resolve())
    return value


def _beside(source: str) -> Path:
    """The directory that a source's relative paths start from."""
    return Path(source) if Path(source).is_dir() else Path(source).parent


def _named(value: Any) -> str:
    path = value.get("path") if isinstance(value, dict) else value
    return repr(path) if isinstance(path, str) else "one"


def image_folder(directory: Path, split: str) -> list[dict[str, Any]]:
    """Rows ``image`` (a path) and ``label`` of a directory with one folder a class, or of its folder for the split.

    An empty list where the directory is of another kind.
    """
    root = directory / split if (directory / split).is_dir() else directory
    return [
        {"image": str(file.relative_to(directory)), "label": folder.name}
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]


Row = dict[str, Any]
PLAIN = (str, int, float, bool, bytes, type(None))


class ClassName(str):
    """The name of a class, and the place that it has among the names of its column."""

    place: int

    def __new__(cls, name: str, place: int) -> ClassName:
        """The name as a text."""
        made = super().__new__(cls, name)
        made.place = place
        return made

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return ClassName, (str(self), self.place)


def plain(value: Any) -> Any:
    """A cell with Python's own numbers, lists and dicts in it, at every depth; what has no such form stays as it is."""
    if type(value) in PLAIN:
        return value
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # of NumPy: a number, or an array of some
        return value.tolist()
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def plain_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows with :func:`plain` cells; those that have them already are not copied."""
    return [
        row
        if not isinstance(row, dict) or all(type(value) in PLAIN for value in row.values())
        else {name: plain(value) for name, value in row.items()}
        for row in rows
    ]


def _number(value: Decimal) -> int | float:
    """A decimal of no places is a whole number."""
    whole = value.is_finite() and value.as_tuple().exponent == 0
    return int(value) if whole else float(value)


def named_classes(rows: list[Row], names: Mapping[str, Sequence[str]]) -> list[Row]:
    """Rows whose class indices are the names that the source gives them; -1, the mark of none, is an empty cell."""

    def named(value: Any, of: Sequence[str]) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        return ClassName(of[value], value) if 0 <= value < len(of) else None if value == -1 else value

    columns = {column: of for column, of in names.items() if of}
    return [{**row, **{c: named(row[c], of) for c, of in columns.items() if c in row}} for row in rows]


def require_whole(text: str, where: str) -> None:
    """Refuse half of an emoji: JSON can spell one, but it is no character.

    Raises:
        DataError: there is one.
    """
    with suppress(UnicodeEncodeError):
        text.encode()
        return
    half = next(i for i, letter in enumerate(text) if "\ud800" <= letter <= "\udfff")
    raise DataError(
        f"{where}: character {half + 1} is half of a surrogate pair ({text[half]!a}), no text; mend the row"
    )
