"""Names of rules of the user's own, which are functions in Python files."""

from __future__ import annotations

import hashlib
from pathlib import Path

BOTTOM = "bottom:"  # before a criterion's name: its ranking from the end


def rule_file(name: str) -> Path | None:
    """The file of a user's own rule, ``rules.py:my_rule``; None where the name is of another kind."""
    path, colon, _ = name.removeprefix(BOTTOM).rpartition(":")
    return Path(path) if colon and path.endswith(".py") else None


def rule_digest(name: str) -> str | None:
    """SHA-256 of the file of a user's own rule, so that an edited one is another; None where the name is no rule's."""
    path = rule_file(name)
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
