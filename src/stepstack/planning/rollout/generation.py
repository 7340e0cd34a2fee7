"""Time of continuous batching on an instance, and the paper's shorter formula for it. No torch."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stepstack.planning.rollout.curves import DecodeCurve


def end_times(lengths: Sequence[int], cap: int, curve: DecodeCurve) -> list[float]:
    """Seconds after which each row ends on one instance that takes rows in their order, ``cap`` at a time.

    All active rows advance by one token in a decode step, whose time depends on their number, so that nothing changes
    between two ends of rows: the clock jumps from one to the next. Prefill takes no time here.
    """
    active: list[tuple[int, int]] = []  # (decode step at which it ends, row)
    ends = [0.0] * len(lengths)
    step, now, following = 0, 0.0, 0
    while active or following < len(lengths):
        while len(active) < cap and following < len(lengths):
            heapq.heappush(active, (step + int(lengths[following]), following))
            following += 1
        last = active[0][0]
        now += (last - step) * curve.seconds(len(active))
        step = last
        while active and active[0][0] == step:
            ends[heapq.heappop(active)[1]] = now
    return ends


def even_seconds(lengths: NDArray[np.int64], instances: int, cap: int, curve: DecodeCurve) -> float:
    """Seconds until all rows have ended that are dealt to ``instances`` in turn, and decoded, from long to short.

    The first instance gets the longest row of every round, so that no other one ends later.
    """
    longest_first = np.sort(lengths)[::-1]
    return max(end_times(longest_first[::instances].tolist(), cap, curve), default=0.0)


def instance_seconds(rows: int, length: float, cap: int, curve: DecodeCurve) -> float:
    """Equation 2 of StreamRL: PTL(BS) x L x ceil(M / BS) for M ``rows`` of ``length`` tokens, BS = min(cap, M)."""
    if rows == 0:
        return 0.0
    batch = min(cap, rows)
    return curve.seconds(batch) * length * math.ceil(rows / batch)
