"""What the README.md of a cloned Hub dataset says of its files and classes: which are of a split, and their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layersift.config.fields import parse_yaml
from layersift.data.images import Row, named_classes
from layersift.errors import DataError, LayersiftError, listed

FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?\n)---[ \t]*(\r?\n|$)", re.DOTALL)
LONGEST = 4 << 20  # bytes of a README.md
Patterns = dict[str, list[str]]  # of the files of each split


class DatasetCard:
    """The YAML at the head of a README.md, as far as it is about the directory's own files."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.values = directory, _front_matter(directory / "README.md")

    def files(self, split: str) -> list[Path] | None:
        """The files that the card names for a split; None where it names none of any.

        Raises:
            DataError: it names several configurations, no such split, or files that are not in the directory.
        """
        configuration = self._configuration()
        patterns = _patterns_of(configuration.get("data_files")) if configuration else {}
        if not patterns:
            return None
        if split not in patterns:
            raise DataError(f"{self._place()} names no files of split {split!r}, but of: {listed(patterns, 120)}")
        files = {file for pattern in patterns[split] for file in self._matching(pattern) if file.is_file()}
        if not files:
            raise DataError(f"{self._place()} names {listed(patterns[split], 120)} for split {split!r}; none is here")
        return sorted(files)

    @property
    def names_splits(self) -> bool:
        """Whether it says which files are of which split."""
        named = self.values.get("configs")
        several = named if isinstance(named, list) else []
        return any(isinstance(c, dict) and _patterns_of(c.get("data_files")) for c in several)

    def with_names(self, rows: list[Row]) -> list[Row]:
        """Rows whose class indices are the names that the card gives them."""
        names = _names_of_classes(self._info())
        digits = {column: of for column, of in names.items() if any(type(row.get(column)) is str for row in rows)}
        if digits:
            rows = [{**row, **{c: _index(row[c], of) for c, of in digits.items() if c in row}} for row in rows]
        return named_classes(rows, names)

    def _configuration(self) -> Mapping[str, Any]:
        """The one configuration that is meant, or nothing.

        Raises:
            DataError: it could be one of several.
        """
        named = self.values.get("configs")
        several = [c for c in named if isinstance(c, dict)] if isinstance(named, list) else []
        if len(several) < 2:
            return several[0] if several else {}
        default = [c for c in several if c.get("default") is True or c.get("config_name") == "default"]
        if len(default) == 1:
            return default[0]
        names = listed((str(c.get("config_name")) for c in several), 80)
        first = next((p[0] for c in several if (p := [*_patterns_of(c.get("data_files")).values()][:1])), ["*"])
        raise DataError(
            f"{self._place()} names {len(several)} configurations ({names}); give the files of one, such as "
            f"{self.directory / first[0]}"
        )

    def _info(self) -> Mapping[str, Any]:
        """What the card says of the configuration's columns."""
        infos = self.values.get("dataset_info")
        several = [info for info in (infos if isinstance(infos, list) else [infos]) if isinstance(info, dict)]
        if len(several) > 1:
            wanted = self._configuration().get("config_name")
            several = [info for info in several if info.get("config_name") == wanted]
        return several[0] if several else {}

    def _matching(self, pattern: str) -> list[Path]:
        if ".." in Path(pattern).parts or Path(pattern).is_absolute() or "://" in pattern or not pattern.strip():
            raise DataError(f"{self._place()} names {pattern!r}, which is not in its directory; give that file itself")
        return list(self.directory.glob(pattern))

    def _place(self) -> str:
        return str(self.directory / "README.md")


def _front_matter(path: Path) -> Mapping[str, Any]:
    """The mapping between the first two lines of dashes; nothing where there is none, or another kind of text."""
    if not path.is_file() or path.stat().st_size > LONGEST:
        return {}
    header = FRONT_MATTER.match(path.read_text(encoding="utf-8-sig", errors="replace"))
    try:
        values = parse_yaml(header[1], str(path)) if header else {}
    except LayersiftError:
        return {}
    return values if isinstance(values, dict) else {}


def _patterns_of(files: Any) -> Patterns:
    """`data_files` in any of its forms, by split; what names no split is of train."""
    if isinstance(files, dict):
        return {str(split): _texts(paths) for split, paths in files.items() if _texts(paths)}
    if isinstance(files, list) and any(isinstance(each, dict) for each in files):
        patterns: Patterns = {}
        for each in files:
            if isinstance(each, dict):
                patterns.setdefault(str(each.get("split", "train")), []).extend(_texts(each.get("path")))
        return {split: paths for split, paths in patterns.items() if paths}
    return {"train": paths} if (paths := _texts(files)) else {}


def _texts(value: Any) -> list[str]:
    each = value if isinstance(value, list) else [value]
    return [text for text in each if isinstance(text, str)]


def _names_of_classes(info: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of classes by column: a list, or a mapping of indices, as `datasets` writes it."""
    features, classes = info.get("features"), {}
    for feature in features if isinstance(features, list) else ():
        kind = feature.get("dtype") if isinstance(feature, dict) else None
        label = kind.get("class_label") if isinstance(kind, dict) else None
        names = label.get("names") if isinstance(label, dict) else None
        if isinstance(names, dict):
            indices = [str(index) for index in range(len(names))]
            by_index = {str(index): name for index, name in names.items()}
            names = [by_index[i] for i in indices] if sorted(by_index) == sorted(indices) else None
        if isinstance(names, list) and names:
            classes[str(feature.get("name"))] = [str(name) for name in names]
    return classes


def _index(value: Any, names: Sequence[str]) -> Any:
    """A class index that a .csv file spells, as a number."""
    return int(value) if type(value) is str and value.isdecimal() and value not in names else value
