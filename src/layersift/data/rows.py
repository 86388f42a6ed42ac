"""Read the rows of a data source: a file, a directory saved by `datasets` or of images, or a Hub dataset."""

from __future__ import annotations

import csv
import glob
import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from layersift.data.images import image_folder
from layersift.errors import DataError, one_line, wrap_library_errors

Row = dict[str, Any]
LONGEST_FIELD = 2**31 - 1  # of a .csv file; Python's own limit of 131,072 characters is shorter than some documents


def _opened(path: Path) -> TextIO:
    """The text of a file, compressed or not."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            with wrap_library_errors(DataError, f"{path}, line {number}: not JSON", "expected one object a line"):
                row = json.loads(line)
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
            rows.append(row)
    return rows


def _read_json(path: Path) -> list[Row]:
    try:
        with _opened(path) as file:
            value = json.load(file)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object a line under the wrong suffix
            return _read_jsonl(path)
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: not JSON that can be read ({one_line(error)})") from None
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
    with _opened(path) as file, wrap_library_errors(DataError, f"{path}: not a .csv file"):
        rows: list[Row] = []
        for number, row in enumerate(csv.DictReader(file), start=2):
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, record {number}: other number of fields than the header; expected fields between commas"
                )
            rows.append(dict(row))
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    with wrap_library_errors(DataError, f"{path}: not a parquet file"):
        return list(pyarrow.parquet.read_table(path).to_pylist())


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
        if files := _files_of_split(path, split):
            return _read_files(files)
        if rows := image_folder(path, split):
            return rows
        raise DataError(
            f"{path}: neither a directory saved by `datasets` (save_to_disk), nor one of images, a folder a class, nor "
            "one of data files (.parquet, .jsonl, .json or .csv)"
        )
    with wrap_library_errors(DataError, f"{path}: cannot read this directory saved by `datasets`"):
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
    of_split = {file: SPLIT.match(file.name) for file in files}
    named = {file: found["split"].lower() for file, found in of_split.items() if found}
    if not named:
        return files
    if not (wanted := [file for file, name in named.items() if name == split.lower()]):
        raise DataError(f"{directory} has no split {split!r}; it has: {', '.join(sorted(set(named.values())))}")
    return wanted


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
    files = [f for f in path.rglob("*") if f.is_file() and _reader_of(f) and not _hidden(f, path)]
    return any(SPLIT.match(file.name) for file in files) if files else (path / split).is_dir()


def _hidden(file: Path, directory: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(directory).parts)


def _read_files(files: Sequence[Path]) -> list[Row]:
    """The rows of several files, one after the other."""
    return [row for file in files for row in _read_file(file)]


def _read_file(path: Path) -> list[Row]:
    reader = _reader_of(path)
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; known: {', '.join(READERS)}, and .gz of text")
    with wrap_library_errors(DataError, f"{path}: cannot be read"):
        try:
            return reader(path)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None


def _read_hub(name: str, split: str) -> list[Row]:
    """``name`` is an id, ``id:configuration``, or ``id:folder`` where the dataset keeps its parts in folders."""
    import datasets

    repository, _, part = name.partition(":")
    with wrap_library_errors(DataError, f"{name!r} is neither a file here nor a dataset that the Hub gave"):
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

    for name, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return list(data.to_list())


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
