"""The uncertainty of a mean over samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def error_of_mean(outcomes: Sequence[float], weights: Sequence[float] = ()) -> float:
    """Standard error, over at least two samples, of their mean weighted by ``weights``, n of each (Cochran 1977, 6.13).

    The weights are as much drawn as the outcomes are, since a loss a token is a ratio of two sums.
    """
    values = np.asarray(outcomes, dtype=float)
    shares = np.asarray(weights, dtype=float) / np.mean(weights) if len(weights) else np.ones(len(values))
    return float(np.std(shares * (values - np.mean(shares * values)), ddof=1) / math.sqrt(len(values)))
