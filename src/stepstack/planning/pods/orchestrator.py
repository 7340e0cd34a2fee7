"""Rings kept up to date fault by fault: an event in, changed ring memberships and transceiver paths out.

The invariant is that every component of the ring holds as many groups as it can. A fault dissolves the group it hits.
Its other nodes become spares, as a repaired node does. Where the spares of the component then suffice for a group, they
are brought together: the orchestrator cuts anew the stretch of the component that holds enough of them and fewest
groups. Groups outside the stretch keep their nodes and their transceivers' state. For a single fault this is the least
number of groups that can change, because each group between the hole and the spare node that fills it must give one
node and take one. ``moves`` bounds that number, at the price of waste.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepstack.planning.pods.ring import LOOPBACK, Chains, Ring

NONE = -1  # as an owner: a spare node; as a member: the group is dissolved


@dataclass(frozen=True, slots=True)
class Change:
    """Changes that an event requires of the cluster.

    ``groups_C``: numbers of the groups that change. ``members_CM``: their new nodes in ring order, -1 where the group
    no longer exists. ``nodes_W`` and ``states_WK``: nodes of which a transceiver must switch, and the new paths of
    their bundles (those of a faulty node loop back).
    """

    groups_C: NDArray[np.int64]
    members_CM: Chains
    nodes_W: NDArray[np.int64]
    states_WK: NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Stretch of a component that can only be cut anew as a whole: spare nodes, or a group with the spares inside
    it."""

    begin: int
    end: int
    groups: int
    spares: int


class Orchestrator:
    """Rings of TP groups on a K-hop ring.

    ``members_GM``: nodes of each group by its number in ring order, -1 where there is no such group. ``owner_N``: the
    group of each node, -1 for none. ``states_NK``: the path of each bundle.
    """

    def __init__(self, ring: Ring, tp: int, faulty: Iterable[int] = (), moves: int | None = None):
        """``moves``: largest number of standing groups that an event may change, beside the one that it hits."""
        self.ring, self.moves = ring, ring.nodes if moves is None else moves
        self.size = ring.group_nodes(tp)
        self.healthy_N = ring.mask(faulty)
        self.members_GM = np.full((ring.nodes // self.size, self.size), NONE, np.int64)
        self.owner_N = np.full(ring.nodes, NONE, np.int64)
        self.states_NK = np.full((ring.nodes, ring.hops), LOOPBACK, np.int8)
        chains = [ring.cut(component, self.size) for component in ring.components(self.healthy_N)]
        self._place(np.concatenate([np.empty((0, self.size), np.int64), *chains]), ())
        self._wire(np.arange(ring.nodes))

    def fault(self, node: int) -> Change:
        """Change after a fault of ``node``. ValueError for a node that does not exist or is faulty already."""
        self.ring.check_node(node)
        if not self.healthy_N[node]:
            raise ValueError(f"node {node} is faulty already: repair it first")
        self.healthy_N[node] = False
        owner = int(self.owner_N[node])
        hit = self._dissolve([owner]) if owner != NONE else np.empty(0, np.int64)
        return self._form_groups(node, [owner] if owner != NONE else [], hit)

    def repair(self, node: int) -> Change:
        """Change after the repair of ``node``. ValueError for a node that does not exist or is not faulty."""
        self.ring.check_node(node)
        if self.healthy_N[node]:
            raise ValueError(f"node {node} is not faulty: name a faulty node")
        self.healthy_N[node] = True
        return self._form_groups(node, [], np.empty(0, np.int64))

    def groups(self) -> Chains:
        """Nodes [G, M] of the existing groups."""
        return self.members_GM[self.members_GM[:, 0] != NONE]

    def spares(self) -> NDArray[np.int64]:
        """Healthy nodes outside any group."""
        return np.flatnonzero(self.healthy_N & (self.owner_N == NONE))

    def _form_groups(self, node: int, hit: Sequence[int], freed: NDArray[np.int64]) -> Change:
        """Form the groups that the components around ``node`` can hold."""
        numbers, touched = list(hit), [np.array([node]), freed]
        for component in self.ring.components(self.healthy_N):
            if self._near(node, component):
                while change := self._gather(component, hit):
                    numbers += change[0]
                    touched.append(change[1])
        groups = np.unique(np.array(numbers, np.int64))
        return Change(groups, self.members_GM[groups], *self._wire(np.unique(np.concatenate(touched))))

    def _near(self, node: int, component: NDArray[np.int64]) -> bool:
        """Whether the component holds the node or reaches it, so that its fault or repair may matter."""
        apart = np.abs(component - node)
        return bool((np.minimum(apart, self.ring.nodes - apart) <= self.ring.hops).any())

    def _gather(self, component: NDArray[np.int64], hit: Sequence[int]) -> tuple[list[int], NDArray[np.int64]] | None:
        """One more group in the component, by the cheapest stretch: (groups that change, nodes of the stretch).

        None where there are too few spares, too many groups would move, or the wiring holds no such stretch.
        """
        owners = self.owner_N[component]
        if (owners == NONE).sum() < self.size:
            return None
        closed = bool((component[0] - component[-1]) % self.ring.nodes <= self.ring.hops)
        if closed and owners[0] != NONE:  # nothing breaks this ring: begin it where no group lies across the end
            begin = int(np.flatnonzero(component == self.members_GM[owners[0], 0])[0])
            component, owners = np.roll(component, -begin), np.roll(owners, -begin)
        blocks = _blocks(owners)
        for moved, first, count in _stretches(blocks, self.size, closed):
            if moved > self.moves:
                return None
            chosen = [blocks[(first + i) % len(blocks)] for i in range(count)]
            nodes = np.concatenate([component[b.begin : b.end] for b in chosen])
            chains = self.ring.cut(nodes, self.size)
            if len(chains) > moved:
                return self._recut(nodes, chains, hit)
        return None

    def _recut(
        self, nodes: NDArray[np.int64], chains: Chains, hit: Sequence[int]
    ) -> tuple[list[int], NDArray[np.int64]]:
        """Replace the groups of a stretch. Each keeps its number, and its place in the order of the stretch."""
        owners = self.owner_N[nodes]
        _, first_places = np.unique(owners, return_index=True)
        old = owners[np.sort(first_places)]
        old = old[old != NONE]
        before = self.members_GM[old]
        self._dissolve(old.tolist())
        numbers = self._place(chains, old.tolist(), hit)
        same = np.zeros(len(chains), bool)
        same[: len(old)] = (before == chains[: len(old)]).all(1)
        return numbers[~same].tolist(), nodes

    def _place(self, chains: Chains, numbers: Sequence[int], hit: Sequence[int] = ()) -> NDArray[np.int64]:
        """Give the chains these numbers, the number of the group just hit, and free ones, in this order."""
        first = [*numbers, *(n for n in hit if self.members_GM[n, 0] == NONE)][: len(chains)]
        free = np.setdiff1d(np.flatnonzero(self.members_GM[:, 0] == NONE), first)
        group_numbers = np.append(np.array(first, np.int64), free)[: len(chains)]
        self.members_GM[group_numbers] = chains
        self.owner_N[chains] = group_numbers[:, None]
        return group_numbers

    def _dissolve(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        nodes = self.members_GM[list(numbers)].ravel()
        self.owner_N[nodes] = NONE
        self.members_GM[list(numbers)] = NONE
        return nodes

    def _wire(self, nodes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        """Set the bundles of these nodes for their groups. Returns the nodes of which a bundle changed, and the new
        states."""
        owners = np.unique(self.owner_N[nodes])
        chains = self.members_GM[owners[owners != NONE]]
        loose = nodes[self.owner_N[nodes] == NONE]
        where = np.concatenate([chains.ravel(), loose])
        wanted = np.concatenate(
            [
                self.ring.paths(chains).reshape(-1, self.ring.hops),
                np.full((len(loose), self.ring.hops), LOOPBACK, np.int8),
            ]
        )
        differ = (self.states_NK[where] != wanted).any(1)
        self.states_NK[where] = wanted
        return where[differ], wanted[differ]


def _blocks(owners: NDArray[np.int64]) -> list[Stretch]:
    """Stretches of a component, in order."""
    edges = np.flatnonzero(owners[1:] != owners[:-1]) + 1
    begins, ends = np.append(0, edges), np.append(edges, len(owners))
    blocks: list[Stretch] = []
    first: dict[int, int] = {}  # group -> its block
    for begin, end, owner in zip(begins.tolist(), ends.tolist(), owners[begins].tolist(), strict=True):
        if owner == NONE:
            blocks.append(Stretch(begin, end, 0, end - begin))
        elif owner in first:  # a repaired node lies inside the group
            inside = blocks[first[owner] :]
            del blocks[first[owner] :]
            blocks.append(Stretch(inside[0].begin, end, 1, sum(b.spares for b in inside)))
        else:
            first[owner] = len(blocks)
            blocks.append(Stretch(begin, end, 1, 0))
    return blocks


def _stretches(blocks: Sequence[Stretch], size: int, closed: bool) -> list[tuple[int, int, int]]:
    """Shortest stretches with ``size`` spares as (groups, first block, blocks), those with fewest groups first."""
    stretches = []
    row = [*blocks, *blocks] if closed else blocks
    last = spares = groups = 0
    for first, block in enumerate(blocks):
        while spares < size and last < len(row) and last - first < len(blocks):
            spares += row[last].spares
            groups += row[last].groups
            last += 1
        if spares < size:
            break
        if block.spares:
            stretches.append((groups, first, last - first))
        spares -= block.spares
        groups -= block.groups
    return sorted(stretches)
