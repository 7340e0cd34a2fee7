"""Which prediction answers for which target. No torch.

Both functions take scores [N predictions, M targets] and return pairs (prediction, target), each at most once, in
order of predictions, and only pairs with a score above 0: a match of no worth is no match.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment


def match(scores: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The pairs with the largest sum of scores (Hungarian algorithm). Raises ValueError for scores not finite."""
    if not np.isfinite(scores).all():
        raise ValueError("scores to match by must be finite")
    # A negative pair is left out below, so it must not weigh on the others either.
    rows, columns = linear_sum_assignment(np.maximum(scores, 0.0), maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if scores[i, j] > 0]


def in_order(scores: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The i-th prediction with the i-th target: what ``match`` is compared with ("without matching")."""
    return [(i, i) for i in range(min(scores.shape)) if scores[i, i] > 0]
