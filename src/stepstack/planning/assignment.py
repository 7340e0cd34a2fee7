"""Assignment of jobs to rows so that the slowest row is as fast as possible, whatever a row's time depends on. No
torch.

An assignment is an array [jobs] of row numbers. Every row must get a job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Assignment = NDArray[np.intp]
# From M assignments [M, jobs] to two arrays [M]: the cost to minimise, and the cost that decides between equals (local
# search needs a slope).
Score = Callable[[Assignment], tuple[NDArray[np.float64], NDArray[np.float64]]]

SCORE_CHUNK = 4096  # assignments scored at once
RESTART_MOVES = 4  # jobs that a restart puts elsewhere


def lpt(burdens: Sequence[float] | NDArray[np.float64], rows: int) -> Assignment:
    """Longest processing time first: jobs from heavy to light, each to the row with the least burden so far.

    The largest burden is at most 4/3 - 1/(3 rows) of the best possible one (Graham 1969, theorem 2; DSV section 7.1).
    ValueError where there are fewer jobs than rows.
    """
    if rows > len(burdens) or rows < 1:
        raise ValueError(f"{len(burdens)} jobs cannot be spread over {rows} rows: take 1 to {len(burdens)} rows")
    loads, counts, assignment = np.zeros(rows), np.zeros(rows, int), np.empty(len(burdens), np.intp)
    for job in np.argsort(-np.asarray(burdens, float), kind="stable"):
        row = np.lexsort((counts, loads))[0]  # by count where burdens are 0, so that no row stays empty
        assignment[job], loads[row], counts[row] = row, loads[row] + burdens[job], counts[row] + 1
    return assignment


def even_lpt(burdens: Sequence[float] | NDArray[np.float64], rows: int) -> Assignment:
    """Variant of ``lpt`` that gives each row the same number of jobs, give or take one.

    It suits costs that grow with the number of jobs.
    """
    order, loads = np.argsort(-np.asarray(burdens, float), kind="stable"), np.zeros(rows)
    assignment = np.empty(len(burdens), np.intp)
    for start in range(0, len(order), rows):
        free = list(np.argsort(loads, kind="stable"))
        for job in order[start : start + rows]:
            assignment[job] = free.pop(0)
            loads[assignment[job]] += burdens[job]
    return assignment


def search(
    score: Score, burdens: NDArray[np.float64], rows: int, exact: int, restarts: int, seed: int
) -> tuple[Assignment, bool]:
    """Best assignment found, and whether all assignments were tried.

    All are tried where there are at most ``exact`` of them. Otherwise the two greedy assignments and ``restarts``
    randomly disturbed ones are improved by moving one job or exchanging two, until nothing helps.
    """
    jobs = len(burdens)
    if rows == 1:
        return np.zeros(jobs, np.intp), True
    if rows**jobs <= exact:
        return _least(score, _all(jobs, rows)), True
    rng = np.random.default_rng(seed)
    best = min(
        (_improve(score, start(burdens, rows), rows) for start in (lpt, even_lpt)), key=lambda r: _value(score, r)
    )
    for _ in range(restarts):
        start = best.copy()
        start[rng.choice(jobs, min(RESTART_MOVES, jobs), replace=False)] = rng.integers(
            rows, size=min(RESTART_MOVES, jobs)
        )
        if len(np.unique(start)) == rows:
            best = min(best, _improve(score, start, rows), key=lambda r: _value(score, r))
    return best, False


def _improve(score: Score, rows_of: Assignment, rows: int) -> Assignment:
    value = _value(score, rows_of)
    while True:
        near = _neighbours(rows_of, rows)
        neighbour = _least(score, near)
        if _value(score, neighbour) >= value:
            return rows_of
        rows_of, value = neighbour, _value(score, neighbour)


def _neighbours(rows_of: Assignment, rows: int) -> Assignment:
    """All assignments that differ from this one by one moved job or two exchanged jobs, [neighbours, jobs]."""
    job, row = np.divmod(np.arange(len(rows_of) * rows), rows)
    leaves = (rows_of[job] != row) & (np.bincount(rows_of, minlength=rows)[rows_of[job]] > 1)
    job, row = job[leaves], row[leaves]
    moved = np.tile(rows_of, (len(job), 1))
    moved[np.arange(len(job)), job] = row
    one, two = np.triu_indices(len(rows_of), 1)
    differ = rows_of[one] != rows_of[two]
    one, two = one[differ], two[differ]
    exchanged = np.tile(rows_of, (len(one), 1))
    at = np.arange(len(one))
    exchanged[at, one], exchanged[at, two] = rows_of[two], rows_of[one]
    return np.concatenate([moved, exchanged])


def _all(jobs: int, rows: int) -> Assignment:
    every = np.stack(np.unravel_index(np.arange(rows**jobs), (rows,) * jobs), axis=1)
    used = np.stack([(every == row).any(axis=1) for row in range(rows)], axis=1)
    return every[used.all(axis=1)]


def _least(score: Score, among: Assignment) -> Assignment:
    first, second = (
        np.concatenate(parts)
        for parts in zip(
            *(score(among[at : at + SCORE_CHUNK]) for at in range(0, len(among), SCORE_CHUNK)), strict=True
        )
    )
    return among[np.lexsort((second, first))[0]]


def _value(score: Score, rows_of: Assignment) -> tuple[float, float]:
    first, second = score(rows_of[None])
    return float(first[0]), float(second[0])
