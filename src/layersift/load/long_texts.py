"""Texts much longer than a model reads: tokenised as far as it takes, so that one row of megabytes costs no more."""

from __future__ import annotations

import re
from typing import Any

CHARACTERS = 32  # a token, at first; ordinary text has four
SPARE = 8  # tokens at the cut that may be others than in the whole text, and special ones
SPACE = re.compile(r"\s")


def beginning(text: str, tokenizer: Any, limit: int) -> str:
    """As much of a text as its first ``limit`` tokens, and some more, are made of: all of it where it is short.

    Cut at white space, where words and so tokens end, and only where what is left has more tokens than are read.
    """
    length = CHARACTERS * limit
    while length < len(text):
        space = SPACE.search(text, length)
        if space is None:
            return text
        part = text[: space.start()]
        if len(tokenizer(part, add_special_tokens=False)["input_ids"]) > limit + SPARE:
            return part
        length *= 4
    return text
