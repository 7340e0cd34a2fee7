"""Matching of predictions to targets. No torch.

Both functions take scores [N predictions, M targets] and return pairs (prediction, target), each at most once, in the
order of predictions. Only pairs with a score above 0 are matches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment


def match(scores: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs with the largest sum of scores (Hungarian algorithm). ValueError for scores that are not finite."""
    if not np.isfinite(scores).all():
        raise ValueError("scores to match by must be finite: check the boxes")
    # A negative pair is left out below, so it must not weigh on the others either.
    rows, columns = linear_sum_assignment(np.maximum(scores, 0.0), maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if scores[i, j] > 0]


def in_order(scores: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of the i-th prediction with the i-th target, the baseline without matching."""
    return [(i, i) for i in range(min(scores.shape)) if scores[i, i] > 0]
