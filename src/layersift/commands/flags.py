"""Flags read off the settings: a parameter of a command that is a settings class becomes one flag for each field.

So a setting's name, type, default and help stand in `layersift.config` alone, and a command gets its settings whole.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Annotated, Any

import typer

from layersift.config.fields import default_of, help_of, meta_of, plain_types, types_of
from layersift.config.recipe import ModelSource
from layersift.errors import LayersiftError

from .help import panel_of


@dataclass(frozen=True)
class Without:
    """Of a command's settings, the fields that it has no flags for; they keep their defaults."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class _Flag:
    """One field of a settings class as a parameter of the command line."""

    field: str
    parameter: inspect.Parameter
    takes_pairs: bool = False  # key=value, repeated, for a field that is a dict
    or_number: bool = False  # a word, or a number where it reads as one


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the flags of its settings in their place.

    Settings that may be None are so where none of their required fields is given.
    """
    hints = inspect.get_annotations(command, eval_str=True)  # get_type_hints wraps what defaults to None on Python 3.10
    expanded: dict[str, tuple[type, list[_Flag]]] = {}
    optional: dict[str, list[_Flag]] = {}  # the required flags of settings that may be None
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        cls, without = _settings_class(hints[name])
        if cls is None:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        flags = [_flag(cls, field) for field in fields(cls) if field.name not in without]
        if parameter.default is None:
            optional[name] = [f for f in flags if f.parameter.default is inspect.Parameter.empty]
            flags = [_made_optional(flag) for flag in flags]
        expanded[name] = cls, flags
        parameters += [flag.parameter for flag in flags]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        for name, (cls, flags) in expanded.items():
            values = {flag.field: given.pop(flag.parameter.name) for flag in flags}
            for flag in flags:
                if flag.takes_pairs:
                    values[flag.field] = key_values(values[flag.field] or [], f"--{flag.parameter.name}")
                elif flag.or_number and isinstance(values[flag.field], str):
                    values[flag.field] = _number_or_word(values[flag.field])
            if name in optional and all(values[flag.field] is None for flag in optional[name]):
                given[name] = None
                continue
            given[name] = cls(**values)
        command(**given)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def words_of(*settings: Any) -> list[str]:
    """The words by which some settings are given to a command again, a model's name first."""
    words: list[str] = []
    for one in settings:
        for field in fields(one):
            value, flag = getattr(one, field.name), _flag(type(one), field)
            if value == default_of(field):
                continue
            name = f"--{flag.parameter.name.replace('_', '-')}"
            if isinstance(one, ModelSource) and field.name == "name":
                words.insert(0, str(value))
            elif isinstance(value, bool):
                words.append(name)
            elif isinstance(value, dict):
                words += [word for key, of in value.items() for word in (name, f"{key}={of}")]
            else:
                words += [name, str(value)]
    return words


def _made_optional(flag: _Flag) -> _Flag:
    parameter = flag.parameter
    if parameter.default is not inspect.Parameter.empty:
        return flag
    kind, option = typing.get_args(parameter.annotation)
    return replace(flag, parameter=parameter.replace(default=None, annotation=Annotated[kind | None, option]))


def _settings_class(hint: Any) -> tuple[Any, Sequence[str]]:
    """The settings class that a parameter is annotated with, and the fields that it leaves out."""
    without: Sequence[str] = ()
    if typing.get_origin(hint) is Annotated:
        without = next((m.names for m in hint.__metadata__ if isinstance(m, Without)), ())
        hint = hint.__origin__
    hint = next(iter(plain_types(hint)), hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else hint
    ours = isinstance(hint, type) and hint.__module__.startswith("layersift.config.")
    return (hint if ours else None), without


def _flag(cls: Any, field: Field[Any]) -> _Flag:
    hint = types_of(cls)[field.name]
    extra: dict[str, Any] = {}
    if (meta := meta_of(hint)) is not None:
        extra = meta.extra or {}
    name = str(extra.get("flag", "")).removeprefix("--").replace("-", "_") or field.name
    options = [t for t in plain_types(hint) if t is not type(None)]
    default = default_of(field)
    option = functools.partial(typer.Option, help=help_of(hint), rich_help_panel=panel_of(cls, field.name))
    if cls is ModelSource and field.name == "name":
        return _Flag(field.name, _parameter("model", str, typer.Argument(metavar="MODEL", help=help_of(hint)), MISSING))
    if any(t is dict or typing.get_origin(t) is dict for t in options):
        return _Flag(field.name, _parameter(name, list[str] | None, option(), None), True)
    if bool in options:
        flag = [] if extra.get("negatable") else [f"--{name.replace('_', '-')}"]
        return _Flag(field.name, _parameter(name, bool, option(*flag), default))
    kind: Any = str
    if options in ([int], [float]):
        (kind,) = options
    return _Flag(
        field.name,
        _parameter(name, kind if default is not None else kind | None, option(), default),
        or_number=kind is str and float in options,
    )


def _number_or_word(text: str) -> float | str:
    with suppress(ValueError):
        return float(text)
    return text


def _parameter(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind, option],
    )


def key_values(assignments: list[str], flag: str) -> dict[str, Any]:
    """The ``key=value`` pairs of a flag, values read as YAML.

    Raises:
        LayersiftError: one of another form.
    """
    from layersift.config.fields import parse_yaml

    flag = flag.replace("_", "-")
    pairs = [assignment.partition("=") for assignment in assignments]
    for key, equals, value in pairs:
        if not key or not equals:
            raise LayersiftError(f"{flag} {key}{equals}{value}: expected key=value")
    return {key: parse_yaml(value, f"{flag} {key}={value}") for key, _, value in pairs}
