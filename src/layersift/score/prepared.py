"""How much each layer changes the representation: 1 - similarity(R_i, R_{i+1}), layer i counted from 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from layersift.errors import SelectionError
from layersift.measures import Measure
from layersift.represent.read import Representations
from layersift.score.probe import Undefined

CONSTANT = "constant over the sample"


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


@dataclass(frozen=True)
class Prepared:
    """Representations ready for comparison by a measure, each prepared once, with reasons where one is not."""

    forms: tuple[Any, ...]  # R_0 ... R_M as the measure prepares them
    reasons: tuple[str | None, ...]
    alike: tuple[torch.Tensor, ...]  # of each representation, which samples (n,) are its most frequent vector
    num_samples: int

    def of(self, measure: Measure, samples: torch.Tensor) -> Prepared:
        """Those of some of the samples."""
        assert measure.subset is not None
        alike = tuple(same[samples] for same in self.alike)
        reasons = tuple(
            why or (CONSTANT if bool(same.all()) else None) for why, same in zip(self.reasons, alike, strict=True)
        )
        forms = tuple(None if why else measure.subset(f, samples) for f, why in zip(self.forms, reasons, strict=True))
        return Prepared(forms, reasons, alike, len(samples))


def prepare(representations: Representations, measure: Measure) -> Prepared:
    """Representations as a measure prepares them."""
    states, dtype = representations.states, representations.dtype
    reasons = tuple(why_undefined(state, dtype) for state in states)
    forms = tuple(None if why else measure.prepare(s.double()) for s, why in zip(states, reasons, strict=True))
    return Prepared(forms, reasons, tuple(_alike(state, dtype) for state in states), len(states[0]))


def _alike(state: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Which samples (n,) of a state (n, d) are one and the same vector, up to the model's rounding.

    Only a vector that more than half of the samples share can be all that a half of them has; it is the median.
    """
    middle = state.median(dim=0).values
    rounding = 4 * torch.finfo(dtype).eps * state.abs().amax(dim=0)
    return ((state - middle).abs() <= rounding).all(dim=1)


def importances(
    prepared: Prepared, measure: Measure, constant_importance: float | None = None
) -> list[float | Undefined]:
    """1 - similarity of every layer's input and output.

    Args:
        constant_importance: what a layer gets whose input or output is constant over the sample. Undefined, unless
            the published rule is wanted, which scores it 1.

    Raises:
        SelectionError: fewer samples than the measure needs.
    """
    if prepared.num_samples < measure.min_samples:
        raise SelectionError(f"{measure.name} needs at least {measure.min_samples} samples, got {prepared.num_samples}")
    scores: list[float | Undefined] = []
    for layer in range(len(prepared.forms) - 1):
        why = "; ".join(
            f"its {side} is {reason}" if reason == CONSTANT else f"its {side} has {reason}"
            for side, reason in (("input", prepared.reasons[layer]), ("output", prepared.reasons[layer + 1]))
            if reason
        )
        value = math.nan if why else 1 - measure.compare(prepared.forms[layer], prepared.forms[layer + 1])
        if constant_importance is not None and CONSTANT in why and "NaN" not in why:
            scores.append(constant_importance)
        else:
            scores.append(value if math.isfinite(value) else Undefined(why or f"{measure.name} is not a number here"))
    return scores
