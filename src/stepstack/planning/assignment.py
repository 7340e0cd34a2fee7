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
Scored = tuple[Assignment, tuple[float, float]]  # one assignment and its two costs
# Where local search ends from an assignment (its bytes): many starts meet on their way.
Ends = dict[bytes, Scored]

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
    score: Score,
    burdens: NDArray[np.float64],
    rows: int,
    exact: int,
    restarts: int,
    seed: int,
    ends: Ends | None = None,
) -> tuple[Assignment, bool]:
    """Best assignment found, and whether all assignments were tried.

    All are tried where there are at most ``exact`` of them. Otherwise the two greedy assignments and ``restarts``
    randomly disturbed ones are improved by moving one job or exchanging two, until nothing helps. ``ends`` is what an
    earlier search of the same jobs by the same score went through, and is added to.
    """
    ends = {} if ends is None else ends
    jobs = len(burdens)
    if rows == 1:
        return np.zeros(jobs, np.intp), True
    if rows**jobs <= exact:
        return _least(score, _all(jobs, rows))[0], True
    rng = np.random.default_rng(seed)
    best = min((_improve(score, start(burdens, rows), rows, ends) for start in (lpt, even_lpt)), key=_value)
    for _ in range(restarts):
        start = best[0].copy()
        start[rng.choice(jobs, min(RESTART_MOVES, jobs), replace=False)] = rng.integers(
            rows, size=min(RESTART_MOVES, jobs)
        )
        if len(np.unique(start)) == rows:
            best = min(best, _improve(score, start, rows, ends), key=_value)
    return best[0], False


def _improve(score: Score, rows_of: Assignment, rows: int, ends: Ends) -> Scored:
    if rows_of.tobytes() in ends:
        return ends[rows_of.tobytes()]
    best, path = _least(score, rows_of[None]), [rows_of.tobytes()]
    while True:
        neighbour = _least(score, _neighbours(best[0], rows))
        if _value(neighbour) >= _value(best):
            break
        best = neighbour
        if best[0].tobytes() in ends:
            best = ends[best[0].tobytes()]
            break
        path.append(best[0].tobytes())
    ends.update(dict.fromkeys(path, best))
    return best


def _neighbours(rows_of: Assignment, rows: int) -> Assignment:
    """All assignments that differ from this one by one moved job or two exchanged jobs, [neighbours, jobs]."""
    job, row = np.divmod(np.arange(len(rows_of) * rows), rows)
    leaves = (rows_of[job] != row) & (np.bincount(rows_of, minlength=rows)[rows_of[job]] > 1)
    job, row = job[leaves], row[leaves]
    one, two = np.nonzero(np.triu(rows_of[:, None] != rows_of))
    near = np.empty((len(job) + len(one), len(rows_of)), np.intp)
    near[:] = rows_of
    near[np.arange(len(job)), job] = row
    at = np.arange(len(job), len(near))
    near[at, one], near[at, two] = rows_of[two], rows_of[one]
    return near


def _all(jobs: int, rows: int) -> Assignment:
    every = np.stack(np.unravel_index(np.arange(rows**jobs), (rows,) * jobs), axis=1)
    used = np.stack([(every == row).any(axis=1) for row in range(rows)], axis=1)
    return every[used.all(axis=1)]


def _least(score: Score, among: Assignment) -> Scored:
    first, second = (
        np.concatenate(parts)
        for parts in zip(
            *(score(among[at : at + SCORE_CHUNK]) for at in range(0, len(among), SCORE_CHUNK)), strict=True
        )
    )
    at = np.lexsort((second, first))[0]
    return among[at], (float(first[at]), float(second[at]))


def _value(scored: Scored) -> tuple[float, float]:
    return scored[1]
