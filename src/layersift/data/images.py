"""Images as data sources hold them: paths, the encoded bytes of `datasets`, or pictures already open."""

from __future__ import annotations

import io
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
