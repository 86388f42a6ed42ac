"""Read the rows of a data source: a file, a directory saved by `datasets` or of images, or a Hub dataset."""

from __future__ import annotations

import csv
import glob
import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from layersift.data.dataset_card import DatasetCard
from layersift.data.images import Row, image_folder, named_classes, plain_rows
from layersift.errors import HUB_REMEDY, DataError, one_line, wrap_library_errors

MOST_UNPACKED, MOST_PACKED = 128 << 20, 100  # bytes, and by the packed size; text has some 3 to 20
SEPARATORS = ("\t", ";", "|")  # that others write between fields
BATCH, CELL = 256, 64  # rows of a .parquet file that are unpacked at once; bytes of a cell beside what it holds
LONGEST_FIELD = 2**31 - 1  # of a .csv file; Python's own limit of 131,072 characters is shorter than some documents


def _opened(path: Path) -> TextIO:
    """The text of a file, compressed or not."""
    if path.suffix.lower() == ".gz":
        _require_modest(path)
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _require_modest(path: Path) -> None:
    """Refuse a compressed file that unpacks to what no text does, before it fills the memory.

    Raises:
        DataError: it is larger than :data:`MOST_UNPACKED`, and more than a hundred times as large as the file.
    """
    most, unpacked = _most_unpacked(path), 0
    with gzip.open(path, "rb") as file:
        while part := file.read(1 << 20):
            unpacked += len(part)
            if unpacked > most:
                raise _immodest(path, most)


def _most_unpacked(path: Path) -> int:
    return max(MOST_UNPACKED, MOST_PACKED * path.stat().st_size)


def _immodest(path: Path, most: int) -> DataError:
    return DataError(
        f"{path}: unpacks to more than {most >> 20:,} MiB, {MOST_PACKED} times its size, as no text does; unpack it "
        "yourself, or write it as .jsonl, if it is meant to be so"
    )


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            with wrap_library_errors(DataError, f"{path}, line {number}: not JSON", "expected one object a line"):
                row = json.loads(line, object_pairs_hook=_once)
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
            rows.append(row)
    return rows


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose keys may stand in it once: of two only the last would be read."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} stands twice in an object")
    return made


def _read_json(path: Path) -> list[Row]:
    try:
        with _opened(path) as file:
            value = json.load(file, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object a line under the wrong suffix
            return _read_jsonl(path)
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}); a list of objects, or one a line in .jsonl"
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: not JSON that can be read ({one_line(error)}); a list of flat objects") from None
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        if len(lists) != 1:
            raise DataError(f"{path}: expected a list of objects, or an object that holds exactly one such list")
        value = lists[0]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise DataError(f"{path}: expected a list of objects")
    return value


def _read_csv(path: Path) -> list[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    with _opened(path) as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        rows: list[Row] = []
        while (record := _next_record(reader, path)) is not None:
            if header is None:
                header = [name.strip() for name in record]
                if header and header[0].startswith("{"):
                    raise DataError(f"{path}, line 1: JSON and no header; let its name end in .jsonl")
                if len(header) == 1 and (between := next((s for s in SEPARATORS if s in header[0]), None)):
                    raise DataError(f"{path}: {between!r} between the fields of line 1; write commas there, or .jsonl")
                if twice := next((name for name in header if name and header.count(name) > 1), None):
                    raise DataError(f"{path}: the header names column {twice!r} twice; give each a name of its own")
            elif record and len(record) != len(header):
                raise DataError(
                    f"{path}, record {len(rows) + 2}: other number of fields ({len(record)}) than the header "
                    f"({len(header)}), up to line {reader.line_num}; expected fields between commas"
                )
            elif record == header:
                raise DataError(f"{path}, line {reader.line_num}: the header once more; write it once")
            elif any(field[:1] == " " and field.lstrip()[:1] == '"' for field in record):
                raise DataError(
                    f"{path}, line {reader.line_num}: a blank in front of a quote, which then is part of the text; "
                    "write the quote right behind the comma"
                )
            elif any("\0" in field for field in record):
                raise DataError(f"{path}, line {reader.line_num}: a NUL, which no text holds; write the file again")
            elif record:
                rows.append(dict(zip(header, record, strict=True)))
    return rows


def _next_record(reader: Any, path: Path) -> list[str] | None:
    """The next record of a .csv file; None at its end.

    Raises:
        DataError: a quote is opened and not closed, or closed within a field; the message has the line.
    """
    begun = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        lines = f"line {begun}" if reader.line_num <= begun else f"lines {begun} to {reader.line_num}"
        raise DataError(
            f"{path}, {lines}: {error}; a field that holds quotes is to stand in quotes, and each within it twice"
        ) from None


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    with wrap_library_errors(DataError, f"{path}: not a parquet file", "write or fetch it again"):
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"{path}: two columns are called {twice!r}; give each a name of its own")
        rows, unpacked, most = list[Row](), 0, _most_unpacked(path)
        for batch in file.iter_batches(BATCH):
            unpacked += batch.nbytes + CELL * batch.num_rows * batch.num_columns
            if unpacked > most:
                raise _immodest(path, most)
            rows += batch.to_pylist()
        return named_classes(plain_rows(rows), _names_of_classes(file.schema_arrow.metadata or {}))


def _require_modest_arrow(directory: Path) -> None:
    """As :func:`_require_modest`, of the files that `datasets` has saved: Arrow packs columns, too."""
    import pyarrow

    for file in sorted(directory.rglob("*.arrow")):
        unpacked, most = 0, _most_unpacked(file)
        with pyarrow.memory_map(str(file)) as source:
            for batch in pyarrow.ipc.open_stream(source):
                unpacked += batch.nbytes + CELL * batch.num_rows * batch.num_columns
                if unpacked > most:
                    raise _immodest(file, most)


def _names_of_classes(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names of classes by column, as `datasets` writes them into a parquet file; nothing where it did not."""
    with suppress(ValueError, KeyError, AttributeError, TypeError):
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    return {}


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _reader_of(path: Path) -> Callable[[Path], list[Row]] | None:
    """What reads a file of this name; text may be compressed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        return READERS.get(suffixes[-2]) if len(suffixes) > 1 and suffixes[-2] != ".parquet" else None
    return READERS.get(path.suffix.lower())


# How files of a split are named: train.jsonl, train-00000-of-00002.parquet, and validation_1.csv.
SPLIT = re.compile(r"(?P<split>train|validation|valid|val|dev|test|eval)(?=[-_.])", re.IGNORECASE)
# Of a directory saved by `datasets`: several splits, or one.
SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


def _read_directory(path: Path, split: str) -> list[Row]:
    import datasets

    if not any((path / name).is_file() for name in SAVED):
        images, card = image_folder(path, split), DatasetCard(path)
        named = card.files(split)
        files = _files_of_split(path, split) if named is None else [f for f in named if _reader_of(f) or not images]
        if files:
            rows = [row for file in files for row in _read_file(file, path)]
            _require_named(rows, images, files, path)
            return card.with_names(rows)
        if images:
            return images
        raise DataError(
            f"{path}: neither a directory saved by `datasets` (save_to_disk), nor one of images, a folder a class, nor "
            "one of data files (.parquet, .jsonl, .json or .csv)"
        )
    with wrap_library_errors(
        DataError,
        f"{path}: cannot read this directory saved by `datasets`",
        "save it again by save_to_disk, or as .parquet files",
    ):
        _require_modest_arrow(path)
        data = datasets.load_from_disk(str(path))
    if hasattr(data, "keys"):
        if split not in data:
            raise DataError(f"{path} has no split {split!r}; it has: {', '.join(data)}")
        data = data[split]
    return rows_of_dataset(data)


def _files_of_split(directory: Path, split: str) -> list[Path]:
    """The data files of a cloned Hub dataset: those named after the split, or all where names tell of none.

    Raises:
        DataError: there are files of other splits only.
    """
    files = sorted(f for f in directory.rglob("*") if f.is_file() and _reader_of(f) and not _hidden(f, directory))
    of_split = {file: _split_of(file, directory) for file in files}
    named = {file: splits for file, splits in of_split.items() if splits}
    if not named:
        return files
    if not (of_this_split := [file for file, name in named.items() if name == split.lower()]):
        raise DataError(f"{directory} has no split {split!r}; it has: {', '.join(sorted(set(named.values())))}")
    return of_this_split


def _split_of(file: Path, directory: Path) -> str | None:
    """The split that a data file is named after: by its own name, or that of a folder."""
    own = SPLIT.match(file.name)
    folders = (SPLIT.match(f"{part}.") for part in file.relative_to(directory).parent.parts)
    place = own or next((match for match in folders if match and match.end() == len(match.string) - 1), None)
    return place["split"].lower() if place else None


def _require_named(rows: Sequence[Row], images: Sequence[Row], files: Sequence[Path], directory: Path) -> None:
    """Refuse a directory of images in folders of classes beside data files that do not speak of them.

    Raises:
        DataError: that; one of both would go unread.
    """
    folders = {row["label"] for row in images}
    known = {Path(row["image"]).name for row in images}
    cells = (str(value) for row in rows for value in row.values() if isinstance(value, str))
    if len(folders) > 1 and not any(Path(cell).name in known for cell in cells):
        raise DataError(
            f"{directory} holds {len(images)} images in {len(folders)} folders, and data files that do not name them, "
            f"such as {files[0].relative_to(directory)}; give that file, or a directory without it"
        )


def split_counts(source: str, split: str) -> bool:
    """Whether the name of a split chooses among the rows of a source; also of one that is not there, or cannot be read.

    Args:
        source: as :func:`read_rows` takes it.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return False
    if not path.is_dir():
        return "*" not in source
    if saved := [name for name in SAVED if (path / name).is_file()]:
        return SAVED[0] in saved
    if DatasetCard(path).names_splits:
        return True
    files = [f for f in path.rglob("*") if f.is_file() and _reader_of(f) and not _hidden(f, path)]
    return any(_split_of(file, path) for file in files) if files else (path / split).is_dir()


def _hidden(file: Path, directory: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(directory).parts)


def _read_files(files: Sequence[Path]) -> list[Row]:
    """The rows of several files, one after the other."""
    return [row for file in files for row in _read_file(file)]


def _read_file(path: Path, root: Path | None = None) -> list[Row]:
    """The rows of a file; images that an image folder's ``file_name`` names are so from ``root``, or from beside it."""
    rows = _read(path)
    if path.name.partition(".")[0].lower() == "metadata" and any("file_name" in row for row in rows):
        beside = path.parent.relative_to(root) if root is not None else Path()
        rows = [_with_image(row, beside) for row in rows]
    return rows


def _with_image(row: Row, beside: Path) -> Row:
    name = row.get("file_name")
    if "image" in row or not isinstance(name, str):
        return row
    return {"image": str(beside / name), **{key: value for key, value in row.items() if key != "file_name"}}


# How files begin that are no rows, whatever they are called; and what to do about it.
BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS and not the file; fetch that by `git lfs pull`",
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as .csv",
    b"\x1f\x8b": "compressed by gzip; let its name end in .jsonl.gz, .json.gz or .csv.gz",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"PAR1": "a parquet file; let its name end in .parquet",
    b"ARROW1": "an Arrow file; save it as .parquet",
    b"<!doctype html": "a web page; fetch the file that it shows",
    b"<html": "a web page; fetch the file that it shows",
}


def _require_kind(path: Path) -> None:
    """Refuse a file of another kind than its name says.

    Raises:
        DataError: it begins as such files do.
    """
    with path.open("rb") as file:
        begun = file.read(32).lstrip().lower()
    expected = b"\x1f\x8b" if path.suffix.lower() == ".gz" else b"PAR1" if path.suffix.lower() == ".parquet" else None
    for beginning, what in BEGINNINGS.items():
        if beginning != expected and begun.startswith(beginning.lower()):
            raise DataError(f"{path}: {what}")


def _read(path: Path) -> list[Row]:
    reader = _reader_of(path)
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; known: {', '.join(READERS)}, and .gz of text")
    with wrap_library_errors(DataError, f"{path}: cannot be read", "fetch or write it again"):
        _require_kind(path)
        try:
            return reader(path)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _read_hub(name: str, split: str) -> list[Row]:
    """``name`` is an id, ``id:configuration``, or ``id:folder`` where the dataset keeps its parts in folders."""
    import datasets

    repository, _, part = name.partition(":")
    with wrap_library_errors(DataError, f"{name!r} is neither a file here nor a dataset that the Hub gave", HUB_REMEDY):
        try:
            data = datasets.load_dataset(repository, part or None, split=split)
        except ValueError as error:
            if not part or "BuilderConfig" not in str(error):
                raise
            data = datasets.load_dataset(repository, data_dir=part, split=split)
    return rows_of_dataset(data)


def rows_of_dataset(data: Any) -> list[Row]:
    """The rows of a `datasets.Dataset`; images stay encoded, all of them at once would not fit in memory."""
    import datasets

    names = {}
    for name, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
        if isinstance(feature, datasets.ClassLabel):
            names[name] = [str(each) for each in feature.names or ()]
    return named_classes(plain_rows(data.to_list()), names)


def read_rows(source: str, split: str = "train") -> list[Row]:
    """The rows of a file (.jsonl, .json, .csv, .parquet), a directory saved by `datasets` or of images, or of the Hub.

    Args:
        source: a path, which may hold ``*``; a directory of such files, of which those named after the split are read;
            or a Hub id, with ``:config`` or ``:folder`` behind it where the dataset has several parts.
        split: for directories and Hub datasets; of the latter also a slice, ``train[:1000]``.

    Raises:
        DataError: nothing is there, it cannot be read, or it holds no rows.
    """
    if not source.strip():
        raise DataError("data '': a file, a directory or a Hub id is needed")
    path = Path(source).expanduser()
    if path.is_dir():
        rows = _read_directory(path, split)
    elif path.is_file():
        rows = _read_file(path)
    elif path.exists():
        raise DataError(f"{source}: a pipe or a device; only files and directories are read")
    elif "*" in source:
        if not (files := sorted(map(Path, glob.glob(str(path), recursive=True)))):
            raise DataError(f"{source}: no file is named so")
        rows = _read_files(files)
    elif _reader_of(path) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise DataError(f"{source}: no such file")
    else:
        rows = _read_hub(source, split)
    if not rows:
        raise DataError(f"{source}: no rows")
    return rows
