"""Token positions: which tokens of a sample stand for it when representations are compared.

A position maps a sample to the indices of one or more tokens; the representation is the mean of their hidden
states. Indices count real tokens only, so padding cannot matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from layersift.data.examples import Example
from layersift.errors import DataError, unknown_name


@dataclass(frozen=True)
class Position:
    """A named choice of tokens.

    Args:
        name: as in :data:`layersift.POSITIONS`.
        summary: one line that says which tokens it takes.
        choose: takes a sample and returns the indices of its tokens.

    Examples:
        >>> from layersift import POSITIONS
        >>> POSITIONS["last"].summary
        'the last token that is not padding'
    """

    name: str
    summary: str
    choose: Callable[[Example], list[int]]


def _true(flags: Sequence[bool]) -> list[int]:
    return [i for i, flag in enumerate(flags) if flag]


def _response(example: Example) -> list[int]:
    if example.response is None:
        raise DataError("position 'response-mean' needs a task with responses; this one has none. Use 'mean'.")
    return _true(example.response)


def _last_of_prompt(example: Example) -> list[int]:
    """Where an answer begins, the token that it is written from.

    Plain text, of which the loss is taken from the second token on, has no prompt to end.
    """
    begins = example.response.index(True) if example.response is not None and True in example.response else 0
    return [begins - 1 if begins > 1 else len(example) - 1]


POSITIONS: dict[str, Position] = {
    p.name: p
    for p in (
        Position("first", "the first token ([CLS] in encoders)", lambda e: [0]),
        Position("last", "the last token that is not padding", lambda e: [len(e) - 1]),
        Position(
            "last-content",
            "the last token that is neither special nor white space",
            lambda e: _true(e.content)[-1:],
        ),
        Position("last-prompt", "the last token before the response; without one, the last token", _last_of_prompt),
        Position("mean", "the mean over all tokens that are not padding", lambda e: list(range(len(e)))),
        Position("response-mean", "the mean over the tokens of the response", _response),
    )
}


def get_position(name: str) -> Position:
    """The position of that name.

    Raises:
        LayersiftError: no such position; the message lists them.
    """
    if name not in POSITIONS:
        raise unknown_name("position", name, POSITIONS)
    return POSITIONS[name]


def token_weights(position: Position, examples: Sequence[Example]) -> torch.Tensor:
    """Weights (B, T) that average the chosen tokens of each sample; T is the longest sample's length.

    Raises:
        DataError: a sample has no token at this position.
    """
    weights = torch.zeros(len(examples), max(len(e) for e in examples))
    for row, example in enumerate(examples):
        chosen = position.choose(example)
        if not chosen:
            raise DataError(f"a sample of {len(example)} tokens has none at position {position.name!r}")
        weights[row, chosen] = 1.0 / len(chosen)
    return weights


def read_position(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Representation (B, d), float32, of hidden states (B, T, d) under ``weights`` (B, T).

    A single token is read exactly; several are averaged in float32 whatever the model's dtype.
    """
    weights = weights.to(hidden.device)
    chosen = weights > 0
    if bool((chosen.sum(dim=1) == 1).all()):
        return hidden[chosen].float()
    # where() rather than a product alone: 0 x inf in a padded place would poison the mean.
    masked = torch.where(chosen[..., None], hidden.float(), 0.0)
    return torch.einsum("btd,bt->bd", masked, weights)
