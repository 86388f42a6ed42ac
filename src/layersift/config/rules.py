"""Names of rules of the user's own, which are functions in Python files."""

from __future__ import annotations

from pathlib import Path

BOTTOM = "bottom:"  # before a criterion's name: its ranking from the end


def rule_file(name: str) -> Path | None:
    """The file of a user's own rule, ``rules.py:my_rule``; None where the name is of another kind."""
    path, colon, _ = name.removeprefix(BOTTOM).rpartition(":")
    return Path(path) if colon and path.endswith(".py") else None
