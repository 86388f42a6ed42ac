"""A cut that follows the data: it moves past a layer whose output has stopped changing between two looks.

At each look R_i, a layer's representations of a probe of the training rows, is held against R_i at the look before by
debiased CKA, the paper's own instrument; the cut lies below the lowest layer that has not converged. What is kept of a
look are Gram matrices, in a file beside the checkpoints, so that a training that is resumed decides as it would have.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from layersift.config.train import STATIC, Strategy
from layersift.errors import LayersiftError
from layersift.measures.cka import u_centre
from layersift.represent.hooks import Done, evaluation_mode, read_blocks

PROBE = 64  # rows


class Convergence:
    """Where the cut of a training lies by what has converged so far.

    Args:
        directory: where looks are kept: that of the training's checkpoints.
        step: at which the training begins, above 0 where it is resumed.
        steps: of the whole training.

    Raises:
        LayersiftError: what is resumed has not kept its last look.
    """

    def __init__(self, strategy: Strategy, directory: Path, step: int, steps: int) -> None:
        self.strategy, self._directory, self._steps = strategy, directory, steps
        self.moves: tuple[tuple[int, int], ...] = ()  # at which step the cut came to lie below which layer
        self._grams: torch.Tensor | None = None  # of the last look (M, n, n)
        at = strategy.looks(steps)
        for path in directory.glob("converging-*.safetensors"):
            if int(path.stem.rpartition("-")[2]) >= step:  # of another training, or to be made again
                path.unlink()
        if before := [look for look in at if look < step]:
            self._read(before[-1])

    @property
    def lowest(self) -> int:
        """The lowest layer that is not below the cut."""
        return self.moves[-1][1] if self.moves else 0

    @property
    def followed(self) -> str:
        """What has come of it, as a strategy of its own; see :class:`layersift.config.train.Strategy`."""
        # Rounded down, so that the step is the first one that is not before this share.
        shares = [(layer, math.floor(step / self._steps * 1e9) / 1e9) for step, layer in self.moves]
        cuts = ",".join(f"{layer}@{format(share, '.9f').rstrip('0')}" for layer, share in shares)
        return f"freezing:{cuts}" if cuts else STATIC

    def look(self, step: int, last: int, read: Callable[[], torch.Tensor]) -> None:
        """Look at the model where it is time, and move the cut.

        Args:
            last: the highest layer that the cut may come to lie below.
            read: gives the Gram matrices (M, n, n) of the representations that the layers give now.
        """
        if step not in self.strategy.looks(self._steps):
            return
        now = read()
        if self._grams is not None:
            changing = [i for i, cka in enumerate(alike(self._grams, now)) if not cka >= self.strategy.converged]
            lowest = min(changing[0] if changing else last, last)
            if lowest > self.lowest:
                self.moves = (*self.moves, (step, lowest))
        self._grams = now
        self._write(step)

    def _place(self, step: int) -> Path:
        return self._directory / f"converging-{step}.safetensors"

    def _write(self, step: int) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._place(step).with_suffix(".partial")
        assert self._grams is not None
        save_file({"grams": self._grams}, partial, {"moves": json.dumps(self.moves)})
        partial.rename(self._place(step))

    def _read(self, step: int) -> None:
        try:
            with safe_open(self._place(step), "pt") as file:
                self._grams = file.get_tensor("grams")
                self.moves = tuple((at, layer) for at, layer in json.loads((file.metadata() or {})["moves"]))
        except Exception as error:  # whatever safetensors makes of a file that is not there or cut short
            raise LayersiftError(
                f"{self._place(step)}: strategy converging cannot go on without its last look ({error}); begin anew"
            ) from None


def alike(before: torch.Tensor, now: torch.Tensor) -> list[float]:
    """Debiased CKA of each layer's representations with those of the look before; (M, n, n) Gram matrices.

    NaN where a layer's representations are constant.
    """
    similarities = []
    for old, new in zip(before.double(), now.double(), strict=True):
        k, l = u_centre(old), u_centre(new)  # noqa: E741 - as the measure's formula calls them
        norm = math.sqrt(float(k.square().sum()) * float(l.square().sum()))
        similarities.append(float((k * l).sum()) / norm if norm > 0 else math.nan)
    return similarities


def probe_of(dataloader: Any, model: nn.Module, size: int) -> list[dict[str, Any]]:
    """Batches of ``size`` of at most :data:`PROBE` training rows, evenly from all, as a forward pass takes them.

    Raises:
        LayersiftError: the data have no length, as those that are streamed.
    """
    rows = dataloader.dataset
    try:
        count = len(rows)
    except TypeError:
        raise LayersiftError("strategy converging looks at rows all over the data; these are streamed") from None
    places = np.unique(np.linspace(0, count - 1, min(PROBE, count)).round().astype(int)).tolist()
    taken = set(inspect.signature(model.forward).parameters) - {"labels"}
    batches = []
    for start in range(0, len(places), size):
        with torch.random.fork_rng([]):  # a collator may draw random masks
            batch = dataloader.collate_fn([rows[place] for place in places[start : start + size]])
        batches.append({name: value for name, value in batch.items() if name in taken})
    return batches


def read_grams(model: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Gram matrices (M, n, n), float32, of the mean hidden state of each row behind each block."""
    device = next(model.parameters()).device
    read: list[list[torch.Tensor]] = [[] for _ in blocks]
    with evaluation_mode(model):
        for batch in batches:
            inputs = {name: v.to(device) if torch.is_tensor(v) else v for name, v in batch.items()}
            mask = inputs.get("attention_mask")

            def keep(layer: int, hidden: torch.Tensor, mask: Any = mask) -> None:
                if layer:
                    read[layer - 1].append(_means(hidden, mask))

            with read_blocks(blocks, keep, stop=True), suppress(Done):
                model(**inputs)
    rows = [torch.cat(states) for states in read]
    return torch.stack([(states @ states.T).float() for states in (r - r.mean(dim=0) for r in rows)]).cpu()


def _means(hidden: torch.Tensor, mask: Any) -> torch.Tensor:
    """The mean hidden state (B, d) over the tokens that are attended to."""
    hidden = hidden.double()
    if torch.is_tensor(mask) and mask.shape == hidden.shape[:2]:
        weights = mask.to(hidden)[..., None]
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
    return hidden.mean(dim=1)
