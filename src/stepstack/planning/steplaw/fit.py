"""Optima of grids of runs, quadratic loss surfaces in log space, and power laws through them with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stepstack.planning.steplaw.grids import LossGrid
from stepstack.planning.steplaw.laws import PowerLaw

Values = NDArray[np.float64]
NEAR_BEST = 0.0025  # excess loss, as a fraction, of the runs that Step Law's own regression takes
SURFACE_WINDOW = 0.02  # excess loss, as a fraction, of the runs that a surface is fitted to
MIN_LOG_RANGE = 0.05  # of ln N and ln D, below which no exponent is fitted
SURFACE_TERMS = 6  # coefficients of a quadratic in two variables


@dataclass(frozen=True, slots=True)
class Surface:
    """Quadratic loss surface: loss(x) = ``floor`` + (x - ``centre``)ᵀ ``curvature`` (x - ``centre``) / 2, x = (ln lr,
    ln batch).

    ``residual``: root mean square of the error of the fit, in units of the loss. ``centre`` is a minimum only where the
    surface is ``convex``.
    """

    centre: Values
    curvature: Values
    floor: float
    residual: float

    @property
    def convex(self) -> bool:
        return bool(np.linalg.eigvalsh(self.curvature).min() > 0)

    @property
    def lr(self) -> float:
        return float(np.exp(self.centre[0]))

    @property
    def batch(self) -> float:
        return float(np.exp(self.centre[1]))

    def __call__(self, lr: ArrayLike, batch: ArrayLike) -> Values:
        offset = np.stack(np.broadcast_arrays(np.log(lr), np.log(batch)), axis=-1) - self.centre
        return self.floor + np.einsum("...i,ij,...j->...", offset, self.curvature, offset) / 2

    def plateau(self, excess: float) -> tuple[float, float]:
        """Factors by which the learning rate, and the batch, may each leave the optimum before the loss has grown by
        ``excess``.

        The other one stays at the optimum. An excess of 0.001 is 0.1 %.
        """
        rise = 2 * excess * self.floor / np.diag(self.curvature)
        return float(np.exp(np.sqrt(rise[0]))), float(np.exp(np.sqrt(rise[1])))


def surface(grid: LossGrid, window: float = SURFACE_WINDOW) -> Surface:
    """Surface fitted by least squares to the runs within ``window`` of the smallest loss.

    ValueError where these runs do not determine it.
    """
    near = grid.within(window)
    if len(near.loss) < SURFACE_TERMS + 1:
        raise ValueError(
            f"{grid.name}: {len(near.loss)} runs are within {window:.1%} of the smallest loss, "
            f"a surface takes {SURFACE_TERMS + 1}: widen the window, or run a finer grid"
        )
    mean = near.x.mean(axis=0)
    u, v = (near.x - mean).T
    basis = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)
    solution, _, rank, _ = np.linalg.lstsq(basis, near.loss, rcond=None)
    if rank < SURFACE_TERMS:
        raise ValueError(
            f"{grid.name}: the runs do not span a surface: vary the learning rate and the batch, three of each"
        )
    curvature = np.array([[2 * solution[3], solution[4]], [solution[4], 2 * solution[5]]])
    centre = -np.linalg.solve(curvature, solution[1:3])
    floor = solution[0] + solution[1:3] @ centre / 2
    residual = float(np.sqrt(np.mean((basis @ solution - near.loss) ** 2)))
    return Surface(centre + mean, curvature, float(floor), residual)


@dataclass(frozen=True, slots=True)
class Optima:
    """Best points of several grids: N, D, learning rate, batch in tokens, all [points]."""

    params: Values
    tokens: Values
    lr: Values
    batch: Values

    @classmethod
    def from_points(cls, points: Sequence[tuple[float, float, float, float]]) -> Optima:
        return cls(*np.array(points, float).T)

    def take(self, chosen: NDArray[np.int64]) -> Optima:
        return Optima(self.params[chosen], self.tokens[chosen], self.lr[chosen], self.batch[chosen])


def best(grids: Sequence[LossGrid]) -> Optima:
    """Run with the smallest loss of each grid."""
    return Optima.from_points(
        [(g.params, g.tokens, g.lr[i], g.batch[i]) for g in grids for i in [int(g.loss.argmin())]]
    )


def near_best(grids: Sequence[LossGrid], tolerance: float = NEAR_BEST) -> Optima:
    """Every run within ``tolerance`` of its grid's smallest loss, which is what Step Law's own regression takes."""
    points = []
    for grid in grids:
        near = grid.within(tolerance)
        points += [(grid.params, grid.tokens, lr, batch) for lr, batch in zip(near.lr, near.batch, strict=True)]
    return Optima.from_points(points)


def minima(grids: Sequence[LossGrid], window: float = SURFACE_WINDOW) -> Optima:
    """Minimum of each grid's surface. ValueError for a surface without one."""
    points = []
    for grid in grids:
        fitted = surface(grid, window)
        if not fitted.convex:
            raise ValueError(f"{grid.name}: the surface has no minimum: extend the grid")
        points.append((grid.params, grid.tokens, fitted.lr, fitted.batch))
    return Optima.from_points(points)


ESTIMATORS: dict[str, Callable[[Sequence[LossGrid]], Optima]] = {"near": near_best, "best": best, "surface": minima}


def power_law(optima: Optima, batch_of_params: bool = False) -> PowerLaw:
    """Ordinary least squares of ln lr on (1, ln N, ln D), and of ln batch on (1, ln D) or on ln N too.

    ValueError where the points do not determine it: N and D must both vary, and not together.
    """
    n, d = np.log(optima.params), np.log(optima.tokens)
    if min(np.ptp(n), np.ptp(d)) < MIN_LOG_RANGE:
        raise ValueError("N or D hardly varies between the grids: a power law takes grids of several of each")
    lr = _ols(np.stack([np.ones_like(n), n, d], axis=1), np.log(optima.lr))
    if batch_of_params:
        batch = _ols(np.stack([np.ones_like(n), n, d], axis=1), np.log(optima.batch))
    else:
        [constant, slope] = _ols(np.stack([np.ones_like(d), d], axis=1), np.log(optima.batch))
        batch = np.array([constant, 0.0, slope])
    return PowerLaw(
        (float(np.exp(lr[0])), float(lr[1]), float(lr[2])), (float(np.exp(batch[0])), float(batch[1]), float(batch[2]))
    )


def r_squared(law: PowerLaw, optima: Optima) -> tuple[float, float]:
    """Fraction of the variance of ln lr, and of ln batch, that the law explains; 0 where there is none to explain."""
    shares = []
    for predicted, observed in zip(law(optima.params, optima.tokens), (optima.lr, optima.batch), strict=True):
        logs = np.log(observed)
        missed, whole = ((logs - np.log(predicted)) ** 2).sum(), ((logs - logs.mean()) ** 2).sum()
        shares.append(float(1 - missed / whole) if whole > 0 else 0.0)
    return shares[0], shares[1]


def bootstrap(optima: Optima, draws: int = 1000, seed: int = 0, batch_of_params: bool = False) -> list[PowerLaw]:
    """Power laws of ``draws`` resamples of the points. A resample that does not determine a law is drawn again."""
    rng = np.random.default_rng(seed)
    laws: list[PowerLaw] = []
    while len(laws) < draws:
        chosen = optima.take(rng.integers(0, len(optima.lr), len(optima.lr)))
        if _determined(chosen):
            laws.append(power_law(chosen, batch_of_params))
    return laws


def interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the values."""
    low, high = np.quantile(np.asarray(values, float), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _determined(optima: Optima) -> bool:
    n, d = np.log(optima.params), np.log(optima.tokens)
    if min(np.ptp(n), np.ptp(d)) < MIN_LOG_RANGE:
        return False
    return int(np.linalg.matrix_rank(np.stack([np.ones_like(n), n - n.mean(), d - d.mean()], axis=1), tol=1e-9)) == 3


def _ols(basis: Values, target: Values) -> Values:
    solution, _, rank, _ = np.linalg.lstsq(basis, target, rcond=None)
    if rank < basis.shape[1]:
        raise ValueError(
            "the grids do not determine a power law: it takes three or more (N, D) in which both vary, and not in step"
        )
    return np.asarray(solution, np.float64)
