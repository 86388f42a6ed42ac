"""Which revision of a model was loaded: the Hub's commit, or a hash of a directory's files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from layersift.config.inputs import ModelSource
from layersift.load.identity import OF_FILES, fingerprint, holds
from layersift.load.places import locate

log = logging.getLogger(__name__)


def is_revision(source: ModelSource, found: str, recorded: str) -> bool:
    """Whether a model that was found to be of one revision is that of a recorded one: of files, those that were loaded.

    A run that was trained on a directory and pushed with the base's Hub id is so judged by what the Hub gave.
    """
    path = Path(locate(source))
    if path.is_dir() or recorded.startswith(OF_FILES):
        place = path if path.is_dir() else _snapshot(source)
        return place is not None and holds(place, recorded)
    if recorded == (source.revision or "main"):
        log.warning("which commit of %r it was made with has not been recorded; it may be another one now", source.name)
        return True
    return found == recorded


def revision_of(source: ModelSource, config: Any) -> str:
    """The Hub's commit, or for local files a hash of what they hold."""
    path = Path(locate(source))
    if path.is_dir():
        return fingerprint(path)
    snapshot = _snapshot(source)
    return snapshot.name if snapshot else str(getattr(config, "_commit_hash", None) or source.revision or "main")


def _snapshot(source: ModelSource) -> Path | None:
    """Where the Hub's files lie, in a directory that is named by their commit; None where they are not in its cache.

    Configurations do not carry the commit any more, from some version of transformers 5 on.
    """
    given = try_to_load_from_cache(source.name, "config.json", revision=source.revision)
    return Path(given).parent if isinstance(given, str) else None
