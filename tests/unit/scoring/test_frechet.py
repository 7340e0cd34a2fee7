"""The Fréchet distance: against known values, against scipy's square root of a matrix, and on degenerate sets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from stepstack.scoring.frechet import Gaussian, distance, gaussian

RNG = np.random.default_rng(0)


def test_diagonal_gaussians_have_the_known_distance():
    """(1 - 4)^2 + 0 for the means; (1 - 2)^2 + (3 - 5)^2 for the deviations."""
    a = Gaussian(np.array([1.0, 2.0]), np.diag([1.0, 9.0]))
    b = Gaussian(np.array([4.0, 2.0]), np.diag([4.0, 25.0]))
    assert distance(a, b) == pytest.approx(9 + 1 + 4)
    assert distance(b, a) == pytest.approx(14)
    assert distance(a, a) == pytest.approx(0, abs=1e-12)


def test_one_dimension_by_hand():
    """Means 2 and 5; unbiased variances 1 and 4."""
    assert distance(gaussian(np.array([[1], [2], [3]])), gaussian(np.array([[3], [5], [7]]))) == pytest.approx(9 + 1)


@pytest.mark.parametrize("dims", [1, 3, 20])
def test_it_is_what_scipy_computes(dims):
    sets = [RNG.normal(size=(60, dims)) @ RNG.normal(size=(dims, dims)) + RNG.normal(size=dims) for _ in range(2)]
    (m, c), (n, d) = ((x.mean(0), np.atleast_2d(np.cov(x.T))) for x in sets)
    want = ((m - n) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert distance(*(gaussian(x) for x in sets)) == pytest.approx(want, rel=1e-8)


def test_fewer_clips_than_dimensions_still_have_a_distance():
    few, many = RNG.normal(size=(5, 30)), RNG.normal(size=(500, 30))
    result = distance(gaussian(few), gaussian(many))
    assert np.isfinite(result)
    assert result > distance(gaussian(many[:250]), gaussian(many[250:]))
    assert distance(gaussian(few), gaussian(few)) == pytest.approx(0, abs=1e-6)


def test_what_is_no_sample_is_refused():
    with pytest.raises(ValueError, match="two rows"):
        gaussian(np.ones((1, 3)))
    with pytest.raises(ValueError, match="two rows"):
        gaussian(np.ones(3))
    with pytest.raises(ValueError, match="NaN"):
        gaussian(np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        distance(gaussian(np.eye(3)), gaussian(np.eye(2)))
