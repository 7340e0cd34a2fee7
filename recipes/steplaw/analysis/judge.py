"""Excess loss of laws on grids of runs, also of laws that were fitted without the grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError

from stepstack.planning.steplaw import fit
from stepstack.planning.steplaw.grids import LossGrid
from stepstack.planning.steplaw.laws import PowerLaw

Values = NDArray[np.float64]
Law = Callable[[LossGrid], tuple[float, float]]  # (peak learning rate, batch in tokens) for a grid's model and tokens
VALLEY_TOLERANCE = 1e-3  # of the loss, below which a dip is no second minimum


def at_grid(law: PowerLaw) -> Law:
    """Power law as a function of a grid, by its N and D."""

    def said(grid: LossGrid) -> tuple[float, float]:
        lr, batch = law(grid.params, grid.tokens)
        return float(lr), float(batch)

    return said


def at_nearest(grid: LossGrid, lr: float, batch: float) -> float:
    """Excess loss of the run that is nearest in (ln lr, ln batch)."""
    return float(grid.excess[((grid.x - np.log([lr, batch])) ** 2).sum(axis=1).argmin()])


def at_nearest_lr(grid: LossGrid, lr: float) -> float:
    """Excess loss of the best run among those with the nearest learning rate, the cost of a law without a batch."""
    distance = np.abs(np.log(grid.lr) - np.log(lr))
    return float(grid.excess[distance <= distance.min() + 1e-3].min())


def interpolated(grid: LossGrid, lr: float, batch: float) -> float:
    """Excess loss interpolated linearly in (ln lr, ln batch) between the runs; outside of them at their edge."""
    near = grid.within(0.5)  # a diverged run would bend the whole triangle next to it
    at = np.clip(np.log([lr, batch]), near.x.min(axis=0), near.x.max(axis=0))
    try:
        value = float(LinearNDInterpolator(near.x, near.excess)(*at))
    except QhullError:  # all runs on a line: it spans no triangle
        value = float("nan")
    return value if np.isfinite(value) else at_nearest(grid, lr, batch)


@dataclass(frozen=True, slots=True)
class Excess:
    """Excess losses of one law, [grids] each: at the nearest run, interpolated, with the learning rate alone."""

    nearest: Values
    interpolated: Values
    lr_only: Values

    def means(self) -> dict[str, float]:
        """Means per mille, and the nearest run's median and maximum."""
        return {
            "nearest": 1e3 * float(self.nearest.mean()),
            "median": 1e3 * float(np.median(self.nearest)),
            "max": 1e3 * float(self.nearest.max()),
            "interpolated": 1e3 * float(self.interpolated.mean()),
            "lr_only": 1e3 * float(self.lr_only.mean()),
        }


def excess(law: Law, grids: Sequence[LossGrid]) -> Excess:
    return _excess([law(grid) for grid in grids], grids)


def _excess(points: Sequence[tuple[float, float]], grids: Sequence[LossGrid]) -> Excess:
    pairs = list(zip(grids, points, strict=True))
    return Excess(
        np.array([at_nearest(grid, *point) for grid, point in pairs]),
        np.array([interpolated(grid, *point) for grid, point in pairs]),
        np.array([at_nearest_lr(grid, point[0]) for grid, point in pairs]),
    )


@dataclass(frozen=True, slots=True)
class LawFamily:
    """Way to fit a law: which points of the grids (``fit.ESTIMATORS``), and whether the batch may depend on N."""

    estimator: str
    batch_of_params: bool

    @property
    def name(self) -> str:
        return f"{self.estimator}, batch of {'N and D' if self.batch_of_params else 'D'}"

    def fitted(self, grids: Sequence[LossGrid]) -> PowerLaw:
        return fit.power_law(fit.ESTIMATORS[self.estimator](grids), self.batch_of_params)


FAMILIES = tuple(LawFamily(name, wide) for name in fit.ESTIMATORS for wide in (False, True))


def held_out(family: LawFamily, grids: Sequence[LossGrid], others: Sequence[LossGrid] = ()) -> Excess:
    """Excess loss on each grid of the law that was fitted to all the others, and to ``others``."""
    return _excess(_held_out(family, grids, others), grids)


def _held_out(
    family: LawFamily, grids: Sequence[LossGrid], others: Sequence[LossGrid] = ()
) -> list[tuple[float, float]]:
    return [at_grid(family.fitted([*(other for other in grids if other is not grid), *others]))(grid) for grid in grids]


def _cost(family: LawFamily, grids: Sequence[LossGrid]) -> float:
    points = _held_out(family, grids)
    return float(np.mean([at_nearest(grid, *point) for grid, point in zip(grids, points, strict=True)]))


def held_out_choice(families: Sequence[LawFamily], grids: Sequence[LossGrid]) -> tuple[Excess, list[LawFamily]]:
    """Excess loss like in ``held_out``, where the family is chosen without the grid too, and the chosen families.

    It is the family whose own held-out excess is smallest on the rest. So the choice among several families gives no
    advantage.
    """
    points, chosen = [], []
    for grid in grids:
        rest = [other for other in grids if other is not grid]
        family = min(families, key=partial(_cost, grids=rest))
        chosen.append(family)
        points.append(at_grid(family.fitted(rest))(grid))
    return _excess(points, grids), chosen


def paired(ours: Values, theirs: Values, draws: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean, low and high of ours - theirs, from a bootstrap over grids at 95 %."""
    difference = ours - theirs
    rng = np.random.default_rng(seed)
    means = difference[rng.integers(0, len(difference), (draws, len(difference)))].mean(axis=1)
    return float(difference.mean()), *fit.interval(means)


def valleys(grid: LossGrid) -> tuple[int, int]:
    """Number of slices of a grid with one valley, and number of slices.

    A slice has three or more runs of one batch by learning rate, or of one learning rate by batch. It has one valley
    where the loss never falls by more than ``VALLEY_TOLERANCE`` away from its lowest run.
    """
    lrs, batches = (np.round(column, 1) for column in (2 * np.log2(grid.lr), 4 * np.log2(grid.batch)))
    good = total = 0
    for fixed, moving in ((batches, grid.lr), (lrs, grid.batch)):
        for value in np.unique(fixed):
            chosen = fixed == value
            if chosen.sum() >= 3:
                good += _one_valley(grid.excess[chosen][np.argsort(moving[chosen])])
                total += 1
    return good, total


def _one_valley(excess: Values) -> bool:
    at = int(excess.argmin())
    sides = excess[at::-1], excess[at:]
    return all(float((np.maximum.accumulate(side) - side).max()) <= VALLEY_TOLERANCE for side in sides)
