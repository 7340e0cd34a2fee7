"""Paired comparison of two evaluations of the same questions: is the difference more than chance? No torch.

Each question is compared with itself, which removes its difficulty. The value of a question is its mean score over the
samples that have a verdict. The test flips the sign of each question's difference: where the two models are alike, each
difference could as well have been the other way round (Fisher's randomisation test for pairs). With one 0/1 sample a
question it is McNemar's exact test.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_EXACT_ADDITIONS = 50_000_000  # additions of an exact test; beyond it signs are drawn at random
RANDOM_DRAWS, BLOCK = 100_000, 1000

SampleRow = Mapping[str, Any]  # row of a samples.jsonl


class NotPaired(ValueError):
    """Two evaluations that did not answer the same questions. The message names the difference."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Comparison of ``b`` with ``a`` on ``n`` questions; ``unscored`` more have no verdict on one side and are left
    out.

    ``difference`` is mean(b) - mean(a), in scores. ``stderr`` is that of a mean of n differences (0 where n is 1).
    ``wins``: questions where b is better. ``p``: two-sided, ``exact`` or from 100,000 random sign flips.
    """

    n: int
    mean_a: float
    mean_b: float
    difference: float
    stderr: float
    wins: int
    ties: int
    losses: int
    p: float
    exact: bool
    unscored: int

    def words(self, a: str, b: str) -> str:
        """Meaning of the comparison in a sentence or two."""
        better, worse = (b, a) if self.difference >= 0 else (a, b)
        test = "exact sign-flip test" if self.exact else "sign-flip test, 100,000 random draws"
        if self.difference == 0:
            verdict = f"{a} and {b} score the same on average"
        else:
            verdict = f"{better} is better than {worse} by {abs(self.difference):.3f} ± {self.stderr:.3f}"
        counts = f"{b} wins {self.wins}, ties {self.ties}, loses {self.losses} of {self.n} questions"
        lost = f"; {self.unscored} without a verdict are left out" if self.unscored else ""
        return f"{verdict}: {counts}{lost}. p = {self.p:.2g} ({test}): {_reading(self.p)}"


def compare(a: Sequence[SampleRow], b: Sequence[SampleRow]) -> Paired:
    """Comparison of rows of samples.jsonl with index, problem, gold and score (None: no verdict).

    NotPaired where the questions differ, or where no question has a verdict on both sides.
    """
    left, right = _questions(a, "first"), _questions(b, "second")
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        side = "first" if odd[0] in left else "second"
        raise NotPaired(f"{len(odd)} questions are in one only, such as {odd[0]} in the {side}: evaluate the same rows")
    for index in sorted(left):
        for key in ("problem", "gold"):
            one, other = left[index][0][key], right[index][0][key]
            if one != other:
                raise NotPaired(
                    f"question {index}: {key} differs: {one[:80]!r} and {other[:80]!r}: evaluate the same rows"
                )
    pairs = [(_mean(left[index]), _mean(right[index])) for index in sorted(left)]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    if not known:
        raise NotPaired("no question has a verdict on both sides: eval again, --again=failed")
    differences = [other - one for one, other in known]
    p, exact = sign_flip(differences)
    values = [float(d) for d in differences]
    return Paired(
        n=len(known),
        mean_a=fmean(float(one) for one, _ in known),
        mean_b=fmean(float(other) for _, other in known),
        difference=fmean(values),
        stderr=stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0,
        wins=sum(d > 0 for d in differences),
        ties=sum(d == 0 for d in differences),
        losses=sum(d < 0 for d in differences),
        p=p,
        exact=exact,
        unscored=len(pairs) - len(known),
    )


def sign_flip(differences: Sequence[Fraction]) -> tuple[float, bool]:
    """Two-sided p and whether it is exact: the probability that random signs give a sum at least as far from 0."""
    moved = [d for d in differences if d]
    if not moved:
        return 1.0, True
    scale = math.lcm(*(d.denominator for d in moved))
    whole = [int(d * scale) for d in moved]
    common = math.gcd(*whole)
    sizes = [abs(d) // common for d in whole]
    if len(sizes) * (sum(sizes) + 1) <= MAX_EXACT_ADDITIONS:
        return _exact_p(sizes, abs(sum(whole)) // common), True
    return _random_p(np.array([float(d) for d in moved])), False


def _exact_p(sizes: Sequence[int], observed: int) -> float:
    """P(|sum of ±sizes| >= observed). A sum is total - 2 x (negative part), whose distribution grows size by size."""
    total = sum(sizes)
    chance = np.zeros(total + 1)
    chance[0], reach = 1.0, 0
    for size in sizes:
        reach += size
        shifted = chance[: reach + 1 - size].copy()
        chance[: reach + 1] /= 2
        chance[size : reach + 1] += shifted / 2
    sums = total - 2 * np.arange(total + 1)
    p = float(chance[np.abs(sums) >= observed].sum())
    return min(1.0, max(p, sys.float_info.min))  # 2**-n of a thousand wins is below what a float holds


def _random_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p from random signs. The observed value counts as one of the draws, so that p is never 0."""
    random = np.random.default_rng(0)
    observed = (
        abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    )  # sums in another order differ in the last bits
    hits = 0
    for _ in range(RANDOM_DRAWS // BLOCK):
        signs = random.integers(0, 2, (BLOCK, len(differences)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ differences) >= observed).sum())
    return (hits + 1) / (RANDOM_DRAWS + 1)


def _questions(rows: Sequence[SampleRow], which: str) -> dict[int, list[SampleRow]]:
    by_index: dict[int, list[SampleRow]] = {}
    for row in rows:
        by_index.setdefault(row["index"], []).append(row)
    if not by_index:
        raise NotPaired(f"the {which} evaluation has no samples: run its command again")
    return by_index


def _mean(rows: Sequence[SampleRow]) -> Fraction | None:
    """Exact mean of the existing scores, as a fraction."""
    scores = [Fraction(row["score"]) for row in rows if row["score"] is not None]
    return sum(scores, Fraction()) / len(scores) if scores else None


def _reading(p: float) -> str:
    if p < 0.001:
        return "chance alone hardly gives such a difference."
    if p < 0.05:
        return f"chance alone gives such a difference about once in {round(1 / p)} comparisons."
    return "chance alone could well give such a difference."
