"""Similarity measures of two representations. Pure maths: this package imports torch and nothing of ours."""

from .base import Measure
from .cka import CKA_BIASED, CKA_DEBIASED

MEASURES: dict[str, Measure] = {m.name: m for m in (CKA_DEBIASED, CKA_BIASED)}

__all__ = ["MEASURES", "Measure"]
