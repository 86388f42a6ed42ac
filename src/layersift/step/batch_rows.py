"""What the frozen prefix gives for a row of a batch depends on: a digest of it, wherever a loader took the row from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

NO_INPUT = ("labels", "num_items_in_batch", "input_ids", "attention_mask")  # not read by blocks, or read apart
FROM_POSITIONS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
EVERY_BLOCK = ("output_hidden_states", "output_attentions", "output_router_logits")  # asked of the prefix, too


class Row(NamedTuple):
    """A row of a batch, or one of the documents packed into it."""

    key: int  # what names it
    place: int  # in the batch
    start: int  # of its tokens in the row
    length: int


def batch_rows(inputs: Mapping[str, Any]) -> list[Row] | None:
    """The rows of a batch of token ids (B, T), by all that a model is called with.

    Padding on either side is no part of a row. Where position ids begin anew within a row, each document stands for
    itself. A mask with holes is part of its row.

    Returns:
        None where something else than token ids, masks and whole numbers enters, such as pixels or a cache of keys; or
        where the outputs of every block are asked for.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not torch.is_tensor(ids) or ids.ndim != 2 or any(inputs.get(name) for name in EVERY_BLOCK):
        return None
    if mask is not None and (not torch.is_tensor(mask) or mask.shape != ids.shape):
        return None
    positions = inputs.get("position_ids")
    counted = positions.cpu().numpy() if torch.is_tensor(positions) and positions.shape == ids.shape else None
    shared, by_token, by_row = hashlib.blake2b(digest_size=16), [ids], []
    if torch.is_autocast_enabled(ids.device.type):  # the same row in another precision is another row
        shared.update(str(torch.get_autocast_dtype(ids.device.type)).encode())
    for name, value in sorted(inputs.items()):
        if name in NO_INPUT or (counted is not None and name in FROM_POSITIONS):
            continue
        if not torch.is_tensor(value):
            if not (value is None or isinstance(value, bool | int | float | str)):
                return None
            shared.update(repr((name, value)).encode())
        elif value.is_floating_point() or value.is_complex():
            return None
        elif value.shape == ids.shape:
            by_token.append(value)
        elif value.ndim and len(value) == len(ids):
            by_row.append(value)
        else:
            shared.update(repr((name, value.tolist())).encode())
    read = np.ones(tuple(ids.shape), bool) if mask is None else mask.cpu().numpy() != 0
    tokens = torch.stack([value.long() for value in by_token]).cpu().numpy()
    rows = []
    for place, own in enumerate(read):
        of_row = shared.copy()
        of_row.update(repr([value[place].tolist() for value in by_row]).encode())
        for start, length, offset in _spans(own, None if counted is None else counted[place]):
            digest = of_row.copy()
            digest.update(repr(offset).encode() + np.packbits(own[start : start + length]).tobytes())
            digest.update(np.ascontiguousarray(tokens[:, place, start : start + length]).tobytes())
            rows.append(Row(int.from_bytes(digest.digest(), "big"), place, start, length))
    return rows


def _spans(read: np.ndarray, positions: np.ndarray | None) -> Iterator[tuple[int, int, int | None]]:
    """Start and length of each document of a row, and what of its place in the row it depends on."""
    if positions is not None and read.all() and (beginnings := np.flatnonzero(positions == 0)).size > 1:
        for start, end in zip([*beginnings], [*beginnings[1:], len(read)], strict=True):
            yield int(start), int(end - start), None
        if beginnings[0] > 0:
            yield 0, int(beginnings[0]), None
        return
    places = np.flatnonzero(read)
    start = int(places[0]) if len(places) else 0
    yield start, (int(places[-1]) - start + 1 if len(places) else len(read)), start
