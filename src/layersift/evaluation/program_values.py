"""Values between the process of a model's code and that of the tests: plain ones are copied, others go by name.

Imported by `execution_child.py` as a file; imports nothing of layersift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

PLAIN = (bool, int, float, complex, str, bytes, type(None))
CONTAINERS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
Packed = list[Any]


def pack(value: Any, name_of: Callable[[Any], Any]) -> Packed:
    """A value as JSON lists; of what is no plain value or container of some, the name that ``name_of`` gives it."""
    if isinstance(value, PLAIN) and type(value) in PLAIN:
        return ["plain", repr(value)]
    for kind, cls in CONTAINERS.items():
        if isinstance(value, cls):
            return [kind, [pack(part, name_of) for part in value]]
    if isinstance(value, dict):  # a Counter is equal to the dict that it holds
        return ["dict", [[pack(k, name_of), pack(v, name_of)] for k, v in value.items()]]
    return ["object", name_of(value)]


def unpack(packed: Packed, named: Callable[[Any], Any]) -> Any:
    """The value again; ``named`` gives what a name stands for."""
    kind, content = packed
    if kind == "plain":
        return _plain(content)
    if kind in CONTAINERS:
        return CONTAINERS[kind](unpack(part, named) for part in content)
    if kind == "dict":
        return {unpack(k, named): unpack(v, named) for k, v in content}
    return named(content)


def _plain(text: str) -> Any:
    """A literal; numbers that have none, such as inf and nan, among them."""
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return complex(text) if "j" in text else float(text)


class Remote:
    """Something in the answer's process: called, asked for attributes, iterated there."""

    def __init__(self, ask: Callable[[list[Any]], Any], name: Any) -> None:
        self.__dict__["_ask"], self.__dict__["_name"] = ask, name

    def _apply(self, operation: str, *arguments: Any) -> Any:
        return self._ask([operation, self._name, list(arguments), {}])

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._ask(["call", self._name, list(arguments), named])

    def __getattr__(self, name: str) -> Any:
        return self._apply("getattr", name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._apply("list"))

    def __len__(self) -> int:
        return int(self._apply("len"))

    def __getitem__(self, key: Any) -> Any:
        return self._apply("getitem", key)

    def __eq__(self, other: object) -> bool:
        # A value of the tests is not shown to the other side, which could say that it equals anything.
        return isinstance(other, Remote) and bool(self._apply("eq", other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return bool(self._apply("bool"))

    def __str__(self) -> str:
        return str(self._apply("str"))

    __hash__ = object.__hash__
