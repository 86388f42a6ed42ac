"""Importance of each layer from its representations: I_i = 1 - similarity(R_i, R_{i+1}), layer i counted from 0."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from layersift.errors import SelectionError
from layersift.measures import Measure
from layersift.represent.read import Representations

CONSTANT = "constant over the sample"


@dataclass(frozen=True)
class LayerScores:
    """One importance a layer; None where it is undefined, with the reason."""

    measure: str
    importance: tuple[float | None, ...]
    undefined: dict[int, str]  # layer -> why
    top_dimension_share: tuple[float | None, ...]  # of each layer's output: variance in its largest dimension / all
    num_samples: int
    seconds: float

    @property
    def ranking(self) -> tuple[int, ...]:
        """Layers with a defined importance, the most important first; ties go to the lower layer."""
        defined = [(-value, i) for i, value in enumerate(self.importance) if value is not None]
        return tuple(i for _, i in sorted(defined))


def side_by_side(scores: Sequence[LayerScores]) -> LayerScores:
    """The scores of several stacks as those of one, whose layers are counted through."""
    undefined: dict[int, str] = {}
    before = 0
    for part in scores:
        undefined |= {before + layer: why for layer, why in part.undefined.items()}
        before += len(part.importance)
    return LayerScores(
        scores[0].measure,
        tuple(value for part in scores for value in part.importance),
        undefined,
        tuple(share for part in scores for share in part.top_dimension_share),
        scores[0].num_samples,
        sum(part.seconds for part in scores),
    )


def why_undefined(state: torch.Tensor, dtype: torch.dtype) -> str | None:
    """Why a representation (n, d) cannot be compared, or None where it can.

    A dimension varies if its values spread further than the model's own rounding could make equal values spread
    (four units in the last place of ``dtype``). A representation in which no dimension varies is the same vector
    for every sample: the embedding of [CLS] entering an encoder, the newline that ends every prompt.
    """
    bad = int((~torch.isfinite(state)).any(dim=1).sum())
    if bad:
        return f"NaN or infinity in {bad} of {len(state)} samples"
    spread = state.amax(dim=0) - state.amin(dim=0)
    rounding = 4 * torch.finfo(dtype).eps * state.abs().amax(dim=0)
    if not bool((spread > rounding).any()):
        return CONSTANT
    return None


def top_dimension_share(state: torch.Tensor) -> float | None:
    """Share of the variance of ``state`` (n, d) that its largest dimension holds; None where nothing varies."""
    variance = state.double().var(dim=0)
    total = float(variance.sum())
    return float(variance.max()) / total if math.isfinite(total) and total > 0 else None


def score_layers(
    representations: Representations, measure: Measure, constant_importance: float | None = None
) -> LayerScores:
    """Importance of every layer, each representation prepared once.

    Args:
        constant_importance: what a layer gets whose input or output is constant over the sample. Undefined, unless
            the published rule is wanted, which scores it 1.

    Raises:
        SelectionError: fewer samples than the measure needs.
    """
    started = time.perf_counter()
    states, dtype = representations.states, representations.dtype
    n = len(states[0])
    if n < measure.min_samples:
        raise SelectionError(f"{measure.name} needs at least {measure.min_samples} samples, got {n}")
    reasons = [why_undefined(state, dtype) for state in states]
    prepared = [None if why else measure.prepare(s.double()) for s, why in zip(states, reasons, strict=True)]
    importance: list[float | None] = []
    undefined: dict[int, str] = {}
    for layer in range(len(states) - 1):
        why = "; ".join(
            f"its {side} is {reason}" if reason == CONSTANT else f"its {side} has {reason}"
            for side, reason in (("input", reasons[layer]), ("output", reasons[layer + 1]))
            if reason
        )
        value = math.nan if why else 1 - measure.compare(prepared[layer], prepared[layer + 1])
        if constant_importance is not None and CONSTANT in why and "NaN" not in why:
            importance.append(constant_importance)
        elif math.isfinite(value):
            importance.append(value)
        else:
            importance.append(None)
            undefined[layer] = why or f"{measure.name} is not a number here"
    shares = tuple(top_dimension_share(state) for state in states[1:])
    return LayerScores(measure.name, tuple(importance), undefined, shares, n, time.perf_counter() - started)
