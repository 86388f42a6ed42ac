"""Samples as people read them, with the tokens that bear the loss marked."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from layersift.load.encode import Encoder
from layersift.load.examples import Example

OPEN, CLOSE = "«", "»"  # around tokens on which the loss is taken


def shown(example: Example, encoder: Encoder) -> str:
    """The sample's tokens as text; of a classification with its class, of an encoder-decoder with what it writes."""
    tokenizer = encoder.tokenizer
    if not example.input_ids:
        text = f"an image, about {example.patches} patches"
    else:
        flags = example.response or (False,) * len(example.input_ids)
        runs = groupby(zip(example.input_ids, flags, strict=True), key=lambda pair: pair[1])
        text = "".join(_run(tokenizer, [token for token, _ in run], wanted) for wanted, run in runs)
    if example.target is not None:
        text += f"\nwrites {_run(tokenizer, list(example.target), True)}"
    if example.label is not None:
        named = encoder.classes[int(example.label)] if encoder.classes else example.label
        text += f"\nlabel {OPEN}{named}{CLOSE}"
    return text


def _run(tokenizer: Any, tokens: list[int], wanted: bool) -> str:
    text = str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
    return f"{OPEN}{text}{CLOSE}" if wanted else text
