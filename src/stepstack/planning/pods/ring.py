"""K-hop ring: which nodes reach each other, over which path of which transceiver bundle.

A node has R GPUs on an inner ring of R gaps. K gaps hold bundles of OCS transceivers, the others copper. A bundle has
two outer paths and a loopback that closes its gap, one at a time at full rate. K bundles give 2K paths, to the nodes up
to K positions before and behind. Consecutive healthy nodes form a ring of any length: each opens the bundle towards its
neighbour, and the two ends loop back (InfinitePOD, section 4 of arXiv 2502.03885).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOOPBACK, PATH1, PATH2 = 0, 1, 2  # the state of a bundle
SWITCHING_US = 80.0  # microseconds that a transceiver takes to change its path, at most (60 to 80)

Healthy = NDArray[np.bool_]
Chains = NDArray[np.int64]  # [C, M]: the nodes of C rings of M nodes each, in ring order


@dataclass(frozen=True, slots=True)
class Ring:
    """Closed line of ``nodes`` with ``gpus`` (R) each and a reach of ``hops`` (K).

    ValueError for a ring that cannot be built. K bundles need K of a node's R gaps. With K = 1 the only bundle has both
    neighbours on it, so that no ring could pass through a node. Under 2K + 1 nodes two fibres would join the same pair.
    """

    nodes: int
    gpus: int = 4
    hops: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.hops <= self.gpus:
            raise ValueError(
                f"hops={self.hops}: a node of {self.gpus} GPUs has room for 2 to {self.gpus} bundles of transceivers: "
                "take as many"
            )
        if self.nodes <= 2 * self.hops:
            raise ValueError(
                f"nodes={self.nodes}: a {self.hops}-hop ring needs at least {2 * self.hops + 1} nodes: add some"
            )

    def group_nodes(self, tp: int) -> int:
        """Nodes of a TP group of ``tp`` GPUs. ValueError where these are no whole nodes, or more than the ring has."""
        return group_nodes(tp, self.gpus, self.nodes)

    def wiring(self) -> dict[int, tuple[int, int]]:
        """Map from hop (-K to K, without 0) to (bundle, path).

        Hops of one direction share a bundle in pairs, because a ring that passes a node needs one path each way at
        once. With an odd K the two longest hops are left over and share the last bundle.
        """
        paths = {}
        for hop in range(1, self.hops + 1):
            bundle, path = (hop - 1) // 2 * 2, PATH1 if hop % 2 else PATH2
            paths[hop], paths[-hop] = (bundle, path), (bundle + 1, path)
        if self.hops % 2:
            paths[self.hops], paths[-self.hops] = (self.hops - 1, PATH1), (self.hops - 1, PATH2)
        return paths

    def mask(self, faulty: Iterable[int]) -> Healthy:
        """Mask [nodes] of the healthy nodes, False at the faulty ones. ValueError for a node that does not exist."""
        healthy = np.ones(self.nodes, bool)
        for node in faulty:
            self.check_node(node)
            healthy[node] = False
        return healthy

    def check_node(self, node: int) -> None:
        if not 0 <= node < self.nodes:
            raise ValueError(f"node {node} does not exist: the ring has nodes 0 to {self.nodes - 1}")

    def components(self, healthy: Healthy) -> list[NDArray[np.int64]]:
        """Groups of healthy nodes that can form one chain, in ring order. K or more consecutive faulty nodes break it.

        A component that passes the last node starts behind its break.
        """
        order = np.flatnonzero(healthy)
        if not len(order):
            return []
        ahead = np.append(order[1:], order[0] + self.nodes) - order
        breaks = np.flatnonzero(ahead > self.hops)
        if not len(breaks):
            return [order]
        turn = -(breaks[0] + 1)
        ends = np.flatnonzero(np.roll(ahead, turn) > self.hops)
        return np.split(np.roll(order, turn), ends[:-1] + 1)

    def hop_lengths(self, chains_CM: Chains) -> NDArray[np.int64]:
        """Positions from each node of a chain to the next, [C, M-1]."""
        return (chains_CM[:, 1:] - chains_CM[:, :-1]) % self.nodes

    def buildable(self, chains_CM: Chains) -> NDArray[np.bool_]:
        """Whether the wiring holds each chain [C].

        Hops must be at most K. Where K is odd, the longest hop must not be on both sides of a node, whose two paths
        share a bundle.
        """
        hops = self.hop_lengths(chains_CM)
        good = np.all((hops >= 1) & (hops <= self.hops), axis=1)
        if self.hops % 2:
            good = good & ~np.any((hops[:, 1:] == self.hops) & (hops[:, :-1] == self.hops), axis=1)
        return np.asarray(good)

    def paths(self, chains_CM: Chains) -> NDArray[np.int8]:
        """State of each bundle of each node, [C, M, K], for rings along disjoint chains.

        ValueError for a chain that is not buildable.
        """
        if not (good := self.buildable(chains_CM)).all():
            bad = chains_CM[~good][:1]
            raise ValueError(
                f"nodes {bad[0].tolist()} form no ring: hops {self.hop_lengths(bad)[0].tolist()}, K={self.hops}"
            )
        hops = self.hop_lengths(chains_CM)
        bundle, path = np.zeros((2, 2 * self.hops + 1), np.int8)  # by hop; a negative one counts from the end
        for hop, (number, way) in self.wiring().items():
            bundle[hop], path[hop] = number, way
        chain, place = np.indices(hops.shape)
        states = np.full((*chains_CM.shape, self.hops), LOOPBACK, np.int8)
        states[chain, place, bundle[hops]] = path[hops]
        states[chain, place + 1, bundle[-hops]] = path[-hops]
        return states

    def in_order(self, nodes_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Nodes of one ring in ascending order, beginning behind the widest gap."""
        nodes = np.sort(nodes_M)
        ahead = np.append(nodes[1:], nodes[0] + self.nodes) - nodes
        return np.roll(nodes, -(int(np.argmax(ahead)) + 1))

    def cut(self, component_N: NDArray[np.int64], size: int) -> Chains:
        """Consecutive rings of ``size`` nodes [C, size], as many as the component holds."""
        fit = len(component_N) // size
        chains = component_N[: fit * size].reshape(fit, size)
        if self.buildable(chains).all():
            return chains
        rings, at = [], 0
        while at + size <= len(component_N):
            chain = component_N[at : at + size]
            good = self.buildable(chain[None])[0]
            rings += [chain] if good else []
            at += size if good else 1
        return np.array(rings, np.int64).reshape(-1, size)


def group_nodes(tp: int, gpus: int, nodes: int) -> int:
    """Nodes of ``gpus`` GPUs in a TP group of ``tp``. ValueError where that is no whole number, or exceeds the
    cluster."""
    if tp < 1 or tp % gpus:
        raise ValueError(f"TP {tp}: must be a multiple of the {gpus} GPUs of a node")
    if tp > nodes * gpus:
        raise ValueError(f"TP {tp}: the cluster has {nodes * gpus} GPUs ({nodes} nodes of {gpus}): take a smaller TP")
    return tp // gpus
