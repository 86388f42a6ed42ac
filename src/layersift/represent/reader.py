"""What is read of a pass: each R_i of a batch at every position, and what stays of it until the pass is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from layersift.data.examples import Example
from layersift.measures import TokenMeasure
from layersift.processes import from_all_processes
from layersift.represent.positions import Position, read_position, token_weights

Rows = dict[str, list[torch.Tensor]]  # by position: what was read of R_0 ... R_M of a batch


class Reader:
    """Reads each R_i of one batch at every position as it passes by, and measures it against R_{i-1}."""

    def __init__(
        self,
        positions: Sequence[Position],
        measures: Sequence[TokenMeasure],
        view: Callable[[int], list[Example]],
    ) -> None:
        self.positions, self.measures, self._view = positions, measures, lru_cache(maxsize=1)(view)
        self.rows: Rows = {p.name: [] for p in positions}
        self.between: dict[str, dict[str, list[torch.Tensor]]] = {
            p.name: {m.name: [] for m in measures} for p in positions
        }
        self.previous: torch.Tensor | None = None
        self._weights: dict[tuple[str, int], torch.Tensor] = {}

    def _weights_of(self, position: Position, hidden: torch.Tensor) -> torch.Tensor:
        key = (position.name, hidden.shape[1])
        if key not in self._weights:
            self._weights[key] = token_weights(position, self._view(hidden.shape[1])).to(hidden.device)
        return self._weights[key]

    def read(self, hidden: torch.Tensor) -> None:
        """``hidden`` (B, T, d) is R_i of the batch, i counting the calls from 0."""
        for position in self.positions:
            self.rows[position.name].append(read_position(hidden, self._weights_of(position, hidden)))
        if not self.measures:
            return
        if self.previous is not None:
            self._measure(self.previous, hidden)
        self.previous = hidden

    def wait_on_the_cpu(self) -> None:
        """Until the next block, which other batches pass through first."""
        self.previous = None if self.previous is None else self.previous.cpu()

    def _measure(self, before: torch.Tensor, after: torch.Tensor) -> None:
        for measure in self.measures:
            values = measure.between(before.to(after.device).float(), after.float())
            for position in self.positions:
                weights = self._weights_of(position, after)
                mean = torch.where(weights > 0, values * weights, 0.0).sum(dim=1)
                self.between[position.name][measure.name].append(mean)

    def replace_last(self, hidden: torch.Tensor) -> None:
        """Read R_M from ``hidden`` instead."""
        for position in self.positions:
            self.rows[position.name][-1] = read_position(hidden, self._weights_of(position, hidden))


class Kept:
    """What stays of a pass at one position: a row a sample and block, where the block runs until the pass is over."""

    def __init__(self, samples: int) -> None:
        self.samples, self.states = samples, list[torch.Tensor]()
        self.between: dict[str, torch.Tensor] = {}

    def merge(self, share: Sequence[int]) -> None:
        """Move it to the CPU, and put in what the other processes have read, exactly as they read it."""
        shares = from_all_processes((list(share), *self._of(share)))
        self.states = []
        for rows, states, between in shares:
            if not rows:  # more processes than samples
                continue
            if not self.states:
                self.states = [torch.empty(self.samples, state.shape[1]) for state in states]
                self.between = {name: torch.empty(len(values), self.samples) for name, values in between.items()}
            for mine, theirs in zip(self.states, states, strict=True):
                mine[rows] = theirs
            for name, values in between.items():
                self.between[name][:, rows] = values

    def _of(self, share: Sequence[int]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        rows = list(share)
        return [state[rows].cpu() for state in self.states], {name: v[:, rows] for name, v in self.between.items()}

    def put(self, batch: list[int], rows: list[torch.Tensor], between: dict[str, list[torch.Tensor]]) -> None:
        """Keep what was read of one batch."""
        if not self.states:
            self.states = [row.new_empty(self.samples, row.shape[1]) for row in rows]
            self.between = {name: torch.empty(len(values), self.samples) for name, values in between.items()}
        for state, row in zip(self.states, rows, strict=True):
            state[batch] = row
        for name, values in between.items():
            self.between[name][:, batch] = torch.stack([v.cpu() for v in values])
