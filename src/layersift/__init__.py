"""Find the layers that should carry the adapters for your task, train only those, and see whether it held."""

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .errors import LayersiftError
    from .select.api import select_layers
    from .select.selection import Selection
    from .train.prefix import FrozenPrefix

__all__ = ["FrozenPrefix", "LayersiftError", "Selection", "__version__", "select_layers"]

_HOMES = {
    "FrozenPrefix": "train.prefix",
    "LayersiftError": "errors",
    "Selection": "select.selection",
    "select_layers": "select.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command line's --help must not wait for torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
