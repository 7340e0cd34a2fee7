"""Number of TP groups that each architecture hosts around faulty nodes, for many fault states at once.

A fault state is a row of ``healthy_FN`` (F states, N nodes of R GPUs). ``groups(healthy_FN, m)`` of an architecture is
the number [S] of TP groups of m nodes that it can form. Healthy GPUs outside any group are wasted. Faulty ones are not
counted as waste, the definition that reproduces the figures of arXiv 2502.03885.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stepstack.planning.pods.ring import Ring, group_nodes

Counts = NDArray[np.int64]
States = NDArray[np.bool_]


class Architecture(Protocol):
    """Interconnect that groups nodes into TP groups."""

    def hosts(self, nodes: int, group: int, gpus: int) -> bool:
        """Whether a TP group of that many nodes fits into one domain at all."""
        ...

    def groups(self, healthy_FN: States, group: int, gpus: int) -> Counts:
        """Number [F] of groups of ``group`` nodes."""
        ...


@dataclass(frozen=True, slots=True)
class BigSwitch:
    """Ideal switch: any healthy nodes form a group."""

    def hosts(self, nodes: int, group: int, gpus: int) -> bool:
        return group <= nodes

    def groups(self, healthy_FN: States, group: int, gpus: int) -> Counts:
        return healthy_FN.sum(1) // group


@dataclass(frozen=True, slots=True)
class KHop:
    """InfinitePOD: a component of the K-hop ring hosts its size over the group's size."""

    hops: int

    def hosts(self, nodes: int, group: int, gpus: int) -> bool:
        return group <= nodes

    def groups(self, healthy_FN: States, group: int, gpus: int) -> Counts:
        states, nodes = healthy_FN.shape
        Ring(nodes, gpus, self.hops)  # raises for what cannot be built
        row, column = np.nonzero(healthy_FN)
        if not len(row):
            return np.zeros(states, np.int64)
        begins = np.ones(len(row), bool)  # where a component begins, as if the ring were a line
        begins[1:] = (row[1:] != row[:-1]) | (column[1:] - column[:-1] > self.hops)
        name = np.cumsum(begins) - 1
        size = np.bincount(name)
        owner = row[begins]
        first = np.flatnonzero(np.append(True, row[1:] != row[:-1]))  # first healthy node of each state that has one
        last = np.append(first[1:], len(row)) - 1
        joined = (column[first] + nodes - column[last] <= self.hops) & (name[first] != name[last])
        size[name[first[joined]]] += size[name[last[joined]]]
        size[name[last[joined]]] = 0
        return np.bincount(owner, size // group, minlength=states).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Domains:
    """Switched domains of ``size`` GPUs, such as DGX-8, NVL-36, NVL-72 and NVL-576. Left-over nodes form a smaller
    domain."""

    size: int

    def hosts(self, nodes: int, group: int, gpus: int) -> bool:
        return group <= min(nodes, self._nodes(gpus))

    def groups(self, healthy_FN: States, group: int, gpus: int) -> Counts:
        starts = np.arange(0, healthy_FN.shape[1], self._nodes(gpus))
        return (np.add.reduceat(healthy_FN, starts, axis=1, dtype=np.int64) // group).sum(1)

    def _nodes(self, gpus: int) -> int:
        if self.size % gpus:
            raise ValueError(
                f"a domain of {self.size} GPUs holds no whole nodes of {gpus} GPUs: take nodes whose GPUs divide it"
            )
        return self.size // gpus


@dataclass(frozen=True, slots=True)
class FixedRings:
    """SiP-Ring: rings of the group's size at fixed places, of which a fault takes the whole ring."""

    def hosts(self, nodes: int, group: int, gpus: int) -> bool:
        return group <= nodes

    def groups(self, healthy_FN: States, group: int, gpus: int) -> Counts:
        return _whole(healthy_FN, group).sum(1)


@dataclass(frozen=True, slots=True)
class CubeDomains:
    """TPUv4: cubes of ``size`` chips, joined by circuit switches cube by cube.

    Groups up to a cube are fixed blocks in it. Larger ones take whole, fully healthy cubes.
    """

    size: int = 64

    def hosts(self, nodes: int, group: int, gpus: int) -> bool:
        cube = self.size // gpus
        return group <= nodes and (cube % group == 0 if group <= cube else group % cube == 0)

    def groups(self, healthy_FN: States, group: int, gpus: int) -> Counts:
        cube = self.size // gpus
        if group <= cube:
            return _whole(healthy_FN, group).sum(1)
        return _whole(healthy_FN, cube).sum(1) // (group // cube)


def _whole(healthy_FN: States, size: int) -> NDArray[np.bool_]:
    """Mask [S, N // size] of the blocks of ``size`` nodes that have no fault."""
    states, nodes = healthy_FN.shape
    blocks = nodes // size
    return np.asarray(healthy_FN[:, : blocks * size].reshape(states, blocks, size).all(2))


ARCHITECTURES: Mapping[str, Architecture] = {
    "ideal": BigSwitch(),
    "InfinitePOD K=2": KHop(2),
    "InfinitePOD K=3": KHop(3),
    "DGX-8": Domains(8),
    "NVL-36": Domains(36),
    "NVL-72": Domains(72),
    "NVL-576": Domains(576),
    "TPUv4": CubeDomains(),
    "SiP-Ring": FixedRings(),
}


def find(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise ValueError(f"no architecture {name!r}: there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def waste(architecture: Architecture, healthy_FN: States, tp: int, gpus: int = 4) -> NDArray[np.float64] | None:
    """Healthy GPUs outside any TP group [F], as a fraction of all GPUs; None where the architecture cannot host TP."""
    capacity = largest_job(architecture, healthy_FN, tp, gpus)
    if capacity is None:
        return None
    return (healthy_FN.sum(1) * gpus - capacity) / (healthy_FN.shape[1] * gpus)


def largest_job(architecture: Architecture, healthy_FN: States, tp: int, gpus: int = 4) -> Counts | None:
    """GPUs of the largest job of whole TP groups [F]; None where the architecture cannot host TP.

    ValueError where TP is no multiple of a node's GPUs or exceeds the cluster.
    """
    nodes = healthy_FN.shape[1]
    group = group_nodes(tp, gpus, nodes)
    if not architecture.hosts(nodes, group, gpus):
        return None
    return architecture.groups(healthy_FN, group, gpus) * tp
