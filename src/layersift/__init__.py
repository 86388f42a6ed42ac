"""layersift: which layers should carry the adapters for your task."""

from ._version import __version__

__all__ = ["__version__"]
