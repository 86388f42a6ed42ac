"""Pilot runs: candidate subsets are trained a little, the better half a little more, until one is left.

Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943) over the subsets that plain rules and chance propose,
judged by the loss on a quarter of the sample that none of them trains on. All rounds together take no more optimizer
steps than the context grants, shared evenly among the candidates of a round.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from layersift.data.examples import Example
from layersift.errors import SelectionError
from layersift.records.selection import LayerScores
from layersift.score.context import ScoringContext
from layersift.score.criteria import plain
from layersift.score.criterion import Criterion
from layersift.score.probe import Undefined
from layersift.score.short_training import BATCH_SIZE, mean_loss, train_steps, with_adapters

CANDIDATES = 8
HELD_BACK = 4  # one sample in so many

State = dict[str, torch.Tensor]


def candidates(context: ScoringContext) -> list[tuple[int, ...]]:
    """Different subsets of N layers: those of the plain rules, filled up with random ones."""
    rules = (plain.LAST, plain.FIRST, plain.MIDDLE, plain.ALTERNATE, plain.FIRST_AND_LAST)
    proposed = [_top(context, rule) for rule in rules]
    for seed in range(10 * CANDIDATES):
        if len(set(proposed)) < CANDIDATES:
            proposed.append(_top(replace(context, seed=context.seed * 1000 + seed), plain.RANDOM))
    return list(dict.fromkeys(proposed))


def _top(context: ScoringContext, rule: Criterion) -> tuple[int, ...]:
    values = tuple(float(v) for v in rule.score(context) if not isinstance(v, Undefined))
    return LayerScores(rule.name, values, {}, (), 0, 0.0).top(context.count)


def pilot(context: ScoringContext) -> list[float | Undefined]:
    """The place of the best candidate that holds a layer: the winner's layers have the highest score, alike.

    Raises:
        SelectionError: fewer steps than candidates, or not one of them has a loss.
    """
    proposed = candidates(context)
    rounds = max(1, len(proposed).bit_length() - 1)  # until one is left, the smaller half going on
    if context.probe_steps < rounds * len(proposed):
        raise SelectionError(
            f"pilot: {context.probe_steps} steps are too few for {len(proposed)} candidates in {rounds} rounds; "
            f"at least {rounds * len(proposed)} are needed"
        )
    held_back = context.examples[::HELD_BACK]
    training = [e for i, e in enumerate(context.examples) if i % HELD_BACK]
    dropped: list[tuple[int, ...]] = []  # the worst first
    with with_adapters(context) as model:
        runs = {layers: _Run(context, model, layers) for layers in proposed}
        alive = list(proposed)
        for turn in range(rounds):
            steps = context.probe_steps // rounds // len(alive)
            losses = {c: runs[c].advance(training, held_back, steps, context.seed + turn) for c in alive}
            if not any(map(math.isfinite, losses.values())):
                raise SelectionError("pilot: the loss of every candidate is NaN or infinite")
            losses = {c: loss if math.isfinite(loss) else math.inf for c, loss in losses.items()}
            alive.sort(key=losses.__getitem__)
            keep = max(1, len(alive) // 2) if turn < rounds - 1 else 1
            dropped += reversed(alive[keep:])
            alive = alive[:keep]
    places = {layers: place for place, layers in enumerate([*dropped, *alive])}
    return [
        float(max((place for layers, place in places.items() if layer in layers), default=-1))
        if any(layer in layers for layers in places)
        else Undefined("in none of the candidates")
        for layer in range(context.num_layers)
    ]


class _Run:
    """One candidate's adapters and head between its rounds."""

    def __init__(self, context: ScoringContext, model: Any, layers: tuple[int, ...]) -> None:
        self.context, self.model = context, model
        prefixes = tuple(f"base_model.model.{context.stack.block_path(i)}." for i in range(context.num_layers))
        own = tuple(prefixes[i] for i in layers)
        everything = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.trained = {n: p for n, p in everything.items() if n.startswith(own) or not n.startswith(prefixes)}
        self.others = {n: p for n, p in everything.items() if n not in self.trained}
        self.untouched = {name: p.detach().clone() for name, p in everything.items()}
        self.state: State = {name: self.untouched[name] for name in self.trained}

    def advance(self, training: list[Example], held_back: tuple[Example, ...], steps: int, seed: int) -> float:
        """Train on from where it stood, and the loss on what is held back."""
        _put(self.others, self.untouched)
        _put(self.trained, self.state)
        for parameter in self.others.values():
            parameter.requires_grad_(False)
        train_steps(self.context, self.model, list(self.trained.values()), training, steps, seed)
        self.state = {name: p.detach().clone() for name, p in self.trained.items()}
        with torch.no_grad():
            cut = [held_back[i : i + BATCH_SIZE] for i in range(0, len(held_back), BATCH_SIZE)]
            loss = sum(float(mean_loss(self.context, self.model, m)) * len(m) for m in cut) / len(held_back)
        for parameter in (*self.others.values(), *self.trained.values()):
            parameter.requires_grad_()
        return loss


def _put(parameters: dict[str, nn.Parameter], values: State) -> None:
    for name, parameter in parameters.items():
        parameter.data.copy_(values[name])


PILOT = Criterion(
    name="pilot",
    summary="the best of eight subsets in short trainings, by successive halving",
    needs="training",
    direction="high",
    score=pilot,
    cost="short trainings, within the steps that are granted",
    source="ours; successive halving after Jamieson & Talwalkar 2016 (1502.07943)",
    by_sample=False,
)
