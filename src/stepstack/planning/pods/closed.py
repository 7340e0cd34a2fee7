"""Closed forms of the expected GPU waste where every node is faulty independently with probability p."""

from __future__ import annotations

from math import exp, lgamma, log, log1p


def fixed_blocks(p: float, group: int) -> float:
    """Waste of SiP-Ring, and of TPUv4 up to a cube: a block of m nodes is lost whole, (1-p) - (1-p)^m."""
    return (1 - p) - (1 - p) ** group


def domains(p: float, size: int, group: int) -> float:
    """Waste of switched domains of n nodes: E[X mod m] / n of the binomial number X of healthy nodes.

    The ideal switch is one domain of all nodes.
    """
    return sum(chance * (k % group) for k, chance in enumerate(_binomial(size, 1 - p))) / size


def cubes(p: float, nodes: int, cube: int, group: int) -> float:
    """Waste of TPUv4 beyond a cube: of X fully healthy cubes, X mod (m / cube) and all broken ones are wasted."""
    count, each = nodes // cube, group // cube
    used = sum(chance * (k // each) for k, chance in enumerate(_binomial(count, (1 - p) ** cube))) * group
    return (1 - p) - used / nodes


def khop(p: float, nodes: int, group: int, hops: int) -> float:
    """Waste of the K-hop ring.

    Breaks are about Poisson of mean b = N p^K (1-p), and a ring with B of them has max(1, B) pieces. Up to one break it
    wastes what the ideal switch does, otherwise (m-1)/2 nodes a piece (for pieces much longer than m).
    """
    b = nodes * p**hops * (1 - p)
    whole = exp(-b)
    pieces = b - b * whole  # E[B; B > 1]
    return whole * (1 + b) * domains(p, nodes, group) + pieces * (group - 1) / (2 * nodes)


def _binomial(n: int, p: float) -> list[float]:
    """Probabilities of 0 to n successes, computed by logarithms because the coefficients of large n overflow floats."""
    if p in (0, 1):
        return [float(k == n * p) for k in range(n + 1)]
    logs = lgamma(n + 1), log(p), log1p(-p)
    return [exp(logs[0] - lgamma(k + 1) - lgamma(n - k + 1) + k * logs[1] + (n - k) * logs[2]) for k in range(n + 1)]
