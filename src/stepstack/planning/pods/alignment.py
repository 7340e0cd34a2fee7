"""Chains of several lines in the same columns, where data-parallel peers sit under one ToR switch.

A line is the stretch of the ring that visits every ToR once (its columns), and all lines visit them in the same order.
Set i of a job takes the i-th chain of every line. Two neighbouring chains of a set agree in a column that both use. A
column in which they do not agree costs a hop between ToRs. ``align`` chooses the chains for the most agreement.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Columns = NDArray[np.int64]
Line = NDArray[np.bool_]
MAX_SWEEPS = 12  # over the lines; agreement never falls, and rarely grows after four


def capacity(healthy_LT: Line, size: int, hops: int) -> NDArray[np.int64]:
    """Number of chains of ``size`` nodes that each line holds by itself, [L]."""
    counts = []
    for line in healthy_LT:
        at = np.flatnonzero(line)
        parts = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(at) > hops) + 1, [len(at)]]))
        counts.append(int((parts // size).sum()))
    return np.array(counts, np.int64)


def align(healthy_LT: Line, sets: int, size: int, hops: int) -> Columns | None:
    """Columns of each chain [sets, L, size], ascending; None where a line does not hold that many chains.

    The search starts from columns chosen for all lines at once, which leaves out those with most faults. It then
    improves every second line in turn by dynamic programming, until nothing improves.
    """
    if not sets:
        return np.empty((0, len(healthy_LT), size), np.int64)
    best: tuple[int, Columns] | None = None
    for cost in _costs(healthy_LT):
        common = chains(np.ones_like(healthy_LT[:1]), np.repeat(-cost[None, None], sets, 1), size, hops)
        if common is None:
            return None
        marks = np.repeat(_marks(common, healthy_LT.shape[1]), len(healthy_LT), 0)
        columns = chains(healthy_LT, marks, size, hops)
        if columns is None:
            return None
        columns, agreed = _improve(healthy_LT, columns, hops)
        if best is None or agreed > best[0]:
            best = agreed, columns
    assert best is not None
    return best[1].transpose(1, 0, 2)


def leftmost(healthy_LT: Line, sets: int, size: int, hops: int) -> Columns | None:
    """First chains of every line by itself, in the form of ``align``."""
    if not sets:
        return np.empty((0, len(healthy_LT), size), np.int64)
    columns = chains(healthy_LT, np.zeros((len(healthy_LT), sets, healthy_LT.shape[1])), size, hops)
    return None if columns is None else columns.transpose(1, 0, 2)


def _costs(healthy_LT: Line) -> list[NDArray[np.float64]]:
    """Two costs [T] of using a column: one counts the hops between ToRs around its faults, the other is zero."""
    faults = (~healthy_LT).sum(0).astype(float)
    edges = (healthy_LT != np.roll(healthy_LT, 1, 0)).sum(0).astype(float)
    return [edges + 0.5 * faults, np.zeros_like(faults)]


def _improve(healthy_LT: Line, made_LSM: Columns, hops: int) -> tuple[Columns, int]:
    """Chains and their agreement after sweeps over every second line against its two neighbours.

    The agreement is the number of columns that neighbours share.
    """
    lines, columns = healthy_LT.shape
    size = made_LSM.shape[2]
    agreed = -1
    turns = [np.arange(start, lines - lines % 2, 2) for start in (0, 1)] + (
        [np.array([lines - 1])] if lines % 2 else []
    )
    turns = [turn for turn in turns if turn.size]  # a single line has no second one
    for _ in range(MAX_SWEEPS):
        for turn in turns:
            marks = _marks(made_LSM, columns)
            neighbours = marks[(turn - 1) % lines] + marks[(turn + 1) % lines]
            better = chains(healthy_LT[turn], neighbours, size, hops)
            assert better is not None  # these lines hold as many chains already
            made_LSM[turn] = better
        marks = _marks(made_LSM, columns)
        now = int((marks * np.roll(marks, 1, 0)).sum())
        if now <= agreed:
            break
        agreed = now
    return made_LSM, agreed


def _marks(made_LSM: Columns, columns: int) -> NDArray[np.float64]:
    """Array [L, S, T] that is 1 where a chain uses the column."""
    marks = np.zeros((*made_LSM.shape[:2], columns))
    np.put_along_axis(marks, made_LSM, 1.0, 2)
    return marks


def chains(healthy_LT: Line, worth_LST: NDArray[np.float64], size: int, hops: int) -> Columns | None:
    """Most valuable S consecutive chains on every line, [L, S, size]; None where a line does not hold S chains.

    It is a dynamic program over columns whose state says that column t is the u-th node used, counted over all chains.
    A node inside a chain follows one at most ``hops`` columns before. The first node of a chain may follow anywhere.
    With odd ``hops`` two longest hops never meet (see ``Ring.wiring``), so states reached by shorter ones are kept
    beside the best.
    """
    lines, columns = healthy_LT.shape
    used = worth_LST.shape[1] * size
    never = np.full((lines, used), -np.inf)
    worth = np.repeat(worth_LST, size, 1)
    worth = np.where(healthy_LT[:, None], worth, -np.inf)
    opens = np.arange(used) % size == 0
    best, short = [never] * hops, [never] * hops  # of the columns before the first
    back = np.zeros((2, columns, lines, used), np.int16)  # column of the node before; first axis: best or short
    ahead, place = never, np.zeros((lines, used), np.int16)  # best over all columns so far, and which
    for t in range(columns):
        start, start_at = _shift(ahead, 0.0), _shift(place, 0)
        near, near_at = _shift(best[-1], -np.inf), np.full((lines, used), t - 1, np.int16)
        for hop in range(2, hops):
            other = _shift(best[-hop], -np.inf)
            near_at = np.where(other > near, t - hop, near_at)
            near = np.maximum(other, near)
        near, near_at = np.where(opens, start, near), np.where(opens, start_at, near_at)
        far = np.where(opens, -np.inf, _shift((short if hops % 2 else best)[-hops], -np.inf))
        back[1, t], back[0, t] = near_at, np.where(far > near, t - hops, near_at)
        short.append(worth[:, :, t] + near)
        best.append(worth[:, :, t] + np.maximum(near, far))
        place = np.where(best[-1] > ahead, t, place).astype(np.int16)
        ahead = np.maximum(best[-1], ahead)
    if np.isneginf(ahead[:, -1]).any():
        return None
    return _walk(back, place[:, -1], hops).reshape(lines, -1, size)


def _walk(back: NDArray[np.int16], last: NDArray[np.int16], hops: int) -> Columns:
    """Nodes [L, used], traced from the last one back to the first."""
    _, _, lines, used = back.shape
    row = np.arange(lines)
    at, kind = last.astype(np.int64), np.zeros(lines, np.int64)
    nodes = np.empty((lines, used), np.int64)
    for u in range(used - 1, -1, -1):
        nodes[:, u] = at
        before = back[kind, at, row, u].astype(np.int64)
        kind = ((hops % 2 == 1) & (at - before == hops)).astype(np.int64)
        at = before
    return nodes


def _shift(values: NDArray, first: float) -> NDArray:
    """Values moved by one node, with ``first`` at the start."""
    moved = np.empty_like(values)
    moved[:, 0], moved[:, 1:] = first, values[:, :-1]
    return moved
