"""Least cross-ToR traffic of a small job with DP 2, by integer programming (HiGHS).

Every chain of the ring is listed, then every pair of disjoint chains with its hops between ToRs. The program chooses
disjoint pairs. It is exponential in the size of a group, so it is meant for tens of nodes. ``placement`` is compared
with it and uses it for small jobs.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csc_array

from stepstack.planning.pods.ring import Chains, Healthy, Ring

MAX_PAIRS = 2_500  # columns of the integer program
MAX_SECONDS = 60.0


class TooLarge(ValueError):
    """Program that would have too many columns, or took too long."""


def every_chain(ring: Ring, healthy: Healthy, size: int, most: int = MAX_PAIRS) -> Chains:
    """All chains that the wiring holds [C, size], also those that hop over healthy nodes. TooLarge above ``most``."""
    grown = np.flatnonzero(healthy)[:, None]
    for _ in range(size - 1):
        ahead = (grown[:, -1:] + np.arange(1, ring.hops + 1)) % ring.nodes
        longer = np.concatenate([np.repeat(grown, ring.hops, 0), ahead.reshape(-1, 1)], 1)
        fresh = (longer[:, :-1] != longer[:, -1:]).all(1)  # a chain that has gone round meets itself
        grown = longer[fresh & healthy[longer[:, -1]]]
        if len(grown) > most:
            raise TooLarge(f"more than {most} chains of {size} nodes: too large for the exact optimum")
    return grown[ring.buildable(grown)]


def optimum(ring: Ring, tors: int, healthy: Healthy, size: int, pairs: int) -> NDArray[np.int64]:
    """Disjoint chains in pairs [pairs, 2, size] with the fewest hops between ToRs over all orders of shards.

    ValueError where so many do not fit, TooLarge where that cannot be decided.
    """
    if ring.hops * (size - 1) >= tors:
        raise TooLarge(f"a group of {size} nodes may meet one of {tors} ToRs twice")
    chains = every_chain(ring, healthy, size)
    if len(chains) ** 2 > 4 * MAX_PAIRS:
        raise TooLarge(f"{len(chains)} chains: too large for the exact optimum")
    uses = np.zeros((len(chains), ring.nodes), bool)
    np.put_along_axis(uses, chains, True, 1)
    under = np.zeros((len(chains), tors), bool)
    np.put_along_axis(under, chains % tors, True, 1)
    both = np.array([(a, b) for a, b in combinations(range(len(chains)), 2) if not (uses[a] & uses[b]).any()], int)
    both = both.reshape(-1, 2)
    if len(both) > MAX_PAIRS:
        raise TooLarge(f"more than {MAX_PAIRS} pairs of chains: too large for the exact optimum")
    if len(both) < pairs:
        raise ValueError(f"{pairs} disjoint pairs of rings do not fit")
    cost = 2 * (size - (under[both[:, 0]] & under[both[:, 1]]).sum(1))
    taken = csc_array((uses[both[:, 0]] | uses[both[:, 1]]).T.astype(float))
    solution = milp(
        cost.astype(float),
        constraints=[LinearConstraint(taken, ub=1), LinearConstraint(np.ones((1, len(both))), pairs, pairs)],
        integrality=np.ones(len(both)),
        bounds=Bounds(0, 1),
        options={"time_limit": MAX_SECONDS},
    )
    if solution.status == 2:
        raise ValueError(f"{pairs} disjoint pairs of rings do not fit")
    if not solution.success:
        raise TooLarge(f"not solved in {MAX_SECONDS:g} s")
    return chains[both[solution.x > 0.5]]
