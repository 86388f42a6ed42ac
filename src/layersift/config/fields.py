"""What a field of the settings declares, how values are held against it, and the YAML that they come in.

A field's type carries its range and its help as :class:`msgspec.Meta`, so that flags, recipes, the JSON schema and the
constructors all read the same declaration.
"""

from __future__ import annotations

import functools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import yaml

from layersift.errors import LayersiftError, one_line, unknown_key, wrap_library_errors
from layersift.files import require_regular

T = TypeVar("T")
FORMER_KEYS = {  # in files of older versions
    "prefix_cache": "activation_cache",
    "prefix_cache_stopped": "activation_cache_stopped",
}
# NumPy's limit, whose generator transformers seeds as well.
Seed = Annotated[
    int, msgspec.Meta(ge=0, le=2**32 - 1, description="Draws samples, first weights and the order of training.")
]


@functools.cache
def types_of(cls: type) -> Mapping[str, Any]:
    """The types of a settings class by field, what they are annotated with included."""
    return typing.get_type_hints(cls, include_extras=True)


def meta_of(hint: Any) -> msgspec.Meta | None:
    """The range and help that a field's type declares, wherever in a union it stands."""
    if typing.get_origin(hint) is Annotated:
        return next((m for m in hint.__metadata__ if isinstance(m, msgspec.Meta)), None)
    return next((meta for part in typing.get_args(hint) if (meta := meta_of(part)) is not None), None)


def help_of(hint: Any) -> str:
    """What a field says of itself to people."""
    meta = meta_of(hint)
    return (meta.description if meta else None) or ""


def plain_types(hint: Any) -> tuple[Any, ...]:
    """The types that a field takes, without what they are annotated with."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return plain_types(hint.__origin__)
    if origin in (typing.Union, types.UnionType):
        return tuple(t for part in typing.get_args(hint) for t in plain_types(part))
    return (hint,)


def default_of(field: Field[Any]) -> Any:
    """A field's default; `dataclasses.MISSING` where it has none."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


class Checked:
    """Settings that hold each of their values against its declared type and range as soon as they are made.

    Raises:
        LayersiftError: a value of another type, out of its range, or not finite.
    """

    def __post_init__(self) -> None:
        own: Any = type(self)
        for name, hint in types_of(own).items():
            check_value(name.replace("_", "-"), getattr(self, name), hint)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Hold a value against a type.

    Raises:
        LayersiftError: it does not fit; ``name`` is what the message calls it.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise LayersiftError(f"{name} {value} is out of range; a finite number is needed")
    if isinstance(value, str):
        require_text(name, value)
    kept = any(is_dataclass(option) for option in plain_types(hint))
    if kept:
        return  # it has checked itself
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        meta = meta_of(hint)
        if meta and _range(meta) and _is_of(value, plain_types(hint)):
            raise LayersiftError(f"{name} {value} is out of range; {_range(meta)} is possible") from None
        raise LayersiftError(f"{name} {value!r}: {_told(error, '')}") from None


def require_text(name: str, value: str) -> None:
    """Refuse a text that no path and no file can hold: one with a NUL, or with half of a character.

    Raises:
        LayersiftError: that; ``name`` is what the message calls it.
    """
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise LayersiftError(f"{name} {value[:60]!a} holds a NUL or half of a character; give a text without")


def _is_of(value: Any, options: tuple[Any, ...]) -> bool:
    """Whether a value is a number of one of the types; whole numbers serve as fractions."""
    return not isinstance(value, bool) and (
        (isinstance(value, int) and (int in options or float in options))
        or (isinstance(value, float) and float in options)
    )


def _range(meta: msgspec.Meta) -> str:
    parts = [
        f"{word} {edge:,}"
        for word, edge in (("above", meta.gt), ("at least", meta.ge), ("below", meta.lt), ("at most", meta.le))
        if edge is not None
    ]
    return " and ".join(parts)


def json_values(record: Any) -> Any:
    """Settings, a record or what holds some of them, as JSON has it: lists for tuples, texts for keys."""
    return _lists(msgspec.to_builtins(record, str_keys=True))


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(inner) for key, inner in value.items()}
    return [_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_as(cls: type[T], values: Any, where: str) -> T:
    """``values``, as JSON or YAML gives them, as an instance of a settings or record class.

    Args:
        where: names the file in messages.

    Raises:
        LayersiftError: a key that the class does not have, one that is missing, or a value of another type, however
            deep it lies; the message gives its path.
    """
    values = with_current_keys(values)
    for path, key, known in unknown_keys(cls, values):
        raise unknown_key(f"{where}, {path}" if path else where, key, known)
    try:
        return msgspec.convert(values, cls, str_keys=True)  # JSON has no other keys
    except msgspec.ValidationError as error:
        raise LayersiftError(_told(error, where)) from None
    except UnicodeError as error:  # JSON may hold halves of characters, which no text does
        raise LayersiftError(f"{where}: {one_line(error)}; write whole characters, in UTF-8") from None


def with_current_keys(values: Any) -> Any:
    """The same values with today's key wherever an older version's stands alone, however deep."""
    if isinstance(values, Mapping):
        given = {key: FORMER_KEYS.get(key, key) for key in values}
        return {key if current in values else current: with_current_keys(values[key]) for key, current in given.items()}
    return list(map(with_current_keys, values)) if isinstance(values, list) else values


def _told(error: msgspec.ValidationError, where: str) -> str:
    """msgspec's message with the path in front: ``recipe.yaml: compare.criteria[0]: expected `str`, got `int```."""
    said, _, path = str(error).partition(" - at `$")
    path = path.strip("`").removeprefix(".")
    said = said.replace("`", "").replace(" | null", "").replace(" | ", " or ")
    if said.startswith("Expected "):
        said = f"e{said[1:]}"
    if said.startswith("Object missing required field "):
        said = f"{said.removeprefix('Object missing required field ')!r} is missing"
    return ": ".join(part for part in (where, path, said) if part)


def unknown_keys(cls: Any, values: Any, path: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """Path, key and what would be known there, of every key that nothing reads."""
    if not isinstance(values, Mapping):
        return
    hints = types_of(cls)
    known = [f.name for f in fields(cls)]
    for key, value in values.items():
        if key not in hints:
            yield path, str(key), known
            continue
        for option in plain_types(hints[key]):
            if is_dataclass(option):
                yield from unknown_keys(option, value, f"{path}.{key}" if path else str(key))
            inner = next((t for t in typing.get_args(option) if is_dataclass(t)), None)
            if inner is not None and isinstance(value, list | tuple):
                for place, part in enumerate(value):
                    yield from unknown_keys(inner, part, f"{path}.{key}[{place}]" if path else f"{key}[{place}]")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which 1e-3 is a number as it is in YAML 1.2 and in JSON, and no key comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"key {twice[0]!r} is given twice")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of some YAML.

    Raises:
        LayersiftError: it is none; the message begins with ``where``.
    """
    with wrap_library_errors(LayersiftError, f"{' '.join(where.split())}: not YAML", YAML_REMEDY):
        value = yaml.load(text, _Loader)
        if _entries(value, {}) > MOST_ENTRIES:
            raise ValueError(f"aliases make more than {MOST_ENTRIES:,} entries of it; write out what is needed")
        return value


YAML_REMEDY = "expected `key: value`, with quotes around what holds a colon or a bracket"
MOST_ENTRIES = 100_000  # of a YAML file, aliases written out


def _entries(value: Any, known: dict[int, int]) -> int:
    """How many entries a value has once its aliases are written out; each part is counted once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_ENTRIES + 1  # what holds itself has no end
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_entries(part, known) for part in inner)
    return known[id(value)]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        LayersiftError: no such file, or it holds something else.
    """
    require_regular(path, "a YAML file")
    with wrap_library_errors(LayersiftError, f"{path}: not YAML", "save it as UTF-8 text"):
        text = path.read_text(encoding="utf-8")
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise LayersiftError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values
