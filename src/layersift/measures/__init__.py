"""Similarity measures of two representations. Pure maths: this package imports nothing of ours."""

from .base import Measure
from .cka import CKA_BIASED, CKA_DEBIASED
from .procrustes import PROCRUSTES
from .rbf import CKA_RBF
from .robust import CKA_ROBUST
from .rsa import RSA
from .tokens import ANGULAR, BLOCK_INFLUENCE, UPDATE_NORM, TokenMeasure

MEASURES: dict[str, Measure] = {m.name: m for m in (CKA_DEBIASED, CKA_BIASED, CKA_RBF, CKA_ROBUST, PROCRUSTES, RSA)}
TOKEN_MEASURES: dict[str, TokenMeasure] = {m.name: m for m in (BLOCK_INFLUENCE, ANGULAR, UPDATE_NORM)}

__all__ = ["MEASURES", "TOKEN_MEASURES", "Measure", "TokenMeasure"]
