"""Fréchet distance of two sets of features, used by FID and FVD (arXiv 1706.08500, 1812.01717). No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Gaussian with ``mean`` [D] and ``covariance`` [D, D]."""

    mean: Floats
    covariance: Floats


def gaussian(features_RD: NDArray) -> Gaussian:
    """Gaussian of a sample, with unbiased covariance. ValueError for fewer than two rows and for NaN or infinite
    features."""
    features = np.asarray(features_RD, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features are {list(features.shape)}: give two rows of numbers or more for a Gaussian")
    if not np.isfinite(features).all():
        raise ValueError("features are NaN or infinite: check the clips and the network of features")
    return Gaussian(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def distance(a: Gaussian, b: Gaussian) -> float:
    """Fréchet distance |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), at least 0.

    With few clips it is too large, and more so with more dimensions. Compare only sets of one size, and include the
    distance of real clips. ValueError for unequal dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {len(a.mean)} and {len(b.mean)} dimensions have no distance: take both from one network"
        )
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # The trace of (C_a C_b)^(1/2) is that of a symmetric matrix with its eigenvalues, which cannot turn complex.
    both = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    apart = float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * both)
    return max(0.0, apart)
