"""Placement of a job of TP x DP x PP on the nodes of a K-hop ring under ToR switches, with little traffic between ToRs.

TP runs inside the rings. DP peers are the same shard of every group of a set (one pipeline stage), and talk through the
data centre network, which costs least under one ToR. Nodes are deployed so that ring neighbours sit under different
ToRs. A line of the ring visits each ToR once, and the nodes at one place of all lines share a ToR.

The cross-ToR rate is the fraction of the hops of all DP rings that join two ToRs. A DP ring goes through the groups of
a set in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, permutations
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stepstack.planning.pods import alignment, exact
from stepstack.planning.pods.ring import Chains, Healthy, Ring

Method = Literal["greedy", "lines", "constrained", "aligned", "exact", "best"]
MAX_VIEW_WORK = 2_000  # nodes times ToRs at which lines are begun, but two ToRs in any case
MAX_PERMUTED_LINES = 4  # up to this many lines, all their orders are tried
Sets = NDArray[np.int64]  # [S, D, M]: ring positions of M nodes, of D groups, of S sets


@dataclass(frozen=True, slots=True)
class Deployment:
    """Nodes of ``ring`` under ToR switches of ``per_tor`` nodes.

    Host h, counted ToR by ToR, is at place (h mod per_tor) of ToR h // per_tor, and at position place * tors + ToR of
    the ring.
    """

    ring: Ring
    per_tor: int

    def __post_init__(self) -> None:
        if self.per_tor < 1 or self.ring.nodes % self.per_tor:
            raise ValueError(
                f"per_tor={self.per_tor}: {self.ring.nodes} nodes fill no whole ToR switches of that many: "
                "take a divisor"
            )

    @property
    def tors(self) -> int:
        return self.ring.nodes // self.per_tor

    def host(self, position: int) -> int:
        return position % self.tors * self.per_tor + position // self.tors

    def position(self, host: int) -> int:
        self.ring.check_node(host)
        return host % self.per_tor * self.tors + host // self.per_tor


@dataclass(frozen=True, slots=True)
class Job:
    """Job of ``pp`` stages, each a set of ``dp`` groups of ``tp`` GPUs."""

    tp: int
    dp: int
    pp: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "dp", "pp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")

    @property
    def groups(self) -> int:
        return self.dp * self.pp


@dataclass(frozen=True, slots=True)
class JobPlacement:
    """Placed job. ``nodes_SDM``: ring positions, in the order of shards within a group."""

    method: str
    nodes_SDM: Sets
    crossings: int
    hops: int

    @property
    def rate(self) -> float:
        """Cross-ToR rate; 0 where there is no DP traffic."""
        return self.crossings / self.hops if self.hops else 0.0


def place(deployment: Deployment, healthy: Healthy, job: Job, method: Method = "best") -> JobPlacement:
    """Place the job on healthy nodes.

    greedy: rings cut off in ring order, and consecutive ones are DP peers. lines: each line is cut by itself, and its
    i-th ring joins set i. constrained: like lines, but in the first columns a ToR with a fault is left out by all
    lines, as far as the job still fits (binary search; the paper's idea). aligned: our method, see ``alignment``, with
    shards that follow ToRs. exact: the optimum of a small job with dp=2 (HiGHS). best: aligned, and exact where aligned
    leaves traffic between ToRs and the program is small enough.

    ValueError where the job does not fit; the message names a job that would.
    """
    size = deployment.ring.group_nodes(job.tp)
    makers: dict[Method, Callable[[], Sets | None]] = {
        "greedy": partial(_greedy, deployment, healthy, job, size),
        "lines": partial(_lines, deployment, healthy, job, size),
        "constrained": partial(_constrained, deployment, healthy, job, size),
        "aligned": partial(_aligned, deployment, healthy, job, size),
        "exact": partial(_exact, deployment, healthy, job, size),
        "best": partial(_aligned_or_exact, deployment, healthy, job, size),
    }
    if method not in makers:
        raise ValueError(f"no method {method!r}: there are {', '.join(get_args(Method))}")
    _check_fits(deployment, healthy, job, size)
    sets = makers[method]()
    if sets is None:  # the lines by themselves hold too few rings; the whole ring holds them
        sets = _greedy(deployment, healthy, job, size)
    return JobPlacement(method, sets, crossings(sets % deployment.tors), sets.size if job.dp > 1 else 0)


def crossings(tors_SDM: Sets) -> int:
    """Number of hops of DP rings between ToRs."""
    return int((tors_SDM != np.roll(tors_SDM, -1, 1)).sum())


def _check_fits(deployment: Deployment, healthy: Healthy, job: Job, size: int) -> None:
    ring = deployment.ring
    fit = len(_cut(ring, healthy, size))
    if fit < job.groups:
        raise ValueError(
            f"the job needs {job.groups} TP groups (dp {job.dp} x pp {job.pp}) of {job.tp} GPUs; the {healthy.sum()} "
            f"healthy of {ring.nodes} nodes hold {fit}: lower dp or pp, or repair nodes"
        )


def _cut(ring: Ring, healthy: Healthy, size: int) -> Chains:
    """Rings [G, size] in ring order, as many as the components hold."""
    cut = [ring.cut(component, size) for component in ring.components(healthy)]
    return np.concatenate([np.empty((0, size), np.int64), *cut])


def _greedy(deployment: Deployment, healthy: Healthy, job: Job, size: int) -> Sets:
    return _cut(deployment.ring, healthy, size)[: job.groups].reshape(job.pp, job.dp, size)


@dataclass(frozen=True, slots=True)
class View:
    """Ring as lines of T columns, which begin ``offset`` ToRs late and are taken in ``order``.

    Which stretches are lines, and which lines make a bundle, is a free choice, and some choices suit the faults better.
    """

    deployment: Deployment
    offset: int
    order: tuple[int, ...]

    def lines(self, of_N: Healthy) -> Healthy:
        """Mask of the healthy nodes by line and column, [L, T]."""
        return np.roll(of_N, -self.offset).reshape(len(self.order), -1)[list(self.order)]

    def positions(self, first: int, columns_SLM: Sets) -> Sets:
        """Ring positions of chains on the lines from ``first`` on."""
        tors, width = self.deployment.tors, columns_SLM.shape[1]
        line = np.array(self.order[first : first + width]) * tors
        return (columns_SLM + line[None, :, None] + self.offset) % self.deployment.ring.nodes


Choose = Callable[[Healthy, int, int, int], NDArray[np.int64] | None]  # (lines, sets, size, hops) -> [sets, L, size]


def _width(deployment: Deployment, job: Job) -> int | None:
    """Number of lines that a set needs; None where sets of DP groups do not fill the lines."""
    width = min(job.dp, deployment.per_tor)
    return None if deployment.per_tor % width or job.dp % width else width


def _by_lines(view: View, healthy: Healthy, job: Job, size: int, choose: Choose) -> Sets | None:
    """Sets of the whole job, where every bundle of lines takes its share of the sets."""
    width, hops = _width(view.deployment, job), view.deployment.ring.hops
    if width is None:
        return None
    lines = view.lines(healthy)
    bundles = np.split(lines, len(lines) // width)
    room = np.array([alignment.capacity(bundle, size, hops).min() for bundle in bundles])
    shares = _shares(room, job.groups // width)
    if shares is None:
        return None
    sets = []
    for number, (bundle, share) in enumerate(zip(bundles, shares.tolist(), strict=True)):
        columns = choose(bundle, share, size, hops)
        if columns is None:
            return None
        sets.append(view.positions(number * width, columns))
    return np.concatenate(sets).reshape(job.pp, job.dp, size)


def _shares(room: NDArray[np.int64], sets: int) -> NDArray[np.int64] | None:
    """Number of sets that each bundle takes, as even as its capacity allows."""
    if room.sum() < sets:
        return None
    shares = np.zeros_like(room)
    for _ in range(sets):
        shares[np.argmin(np.where(shares < room, shares - room * 1e-6, np.inf))] += 1
    return shares


def _plain(deployment: Deployment) -> View:
    return View(deployment, 0, tuple(range(deployment.per_tor)))


def _lines(deployment: Deployment, healthy: Healthy, job: Job, size: int) -> Sets | None:
    return _by_lines(_plain(deployment), healthy, job, size, alignment.leftmost)


def _constrained(deployment: Deployment, healthy: Healthy, job: Job, size: int) -> Sets | None:
    """Placement with the most leading columns in which a ToR with a fault is left out, by binary search."""
    rows = healthy.reshape(deployment.per_tor, -1)
    low, high = 0, deployment.tors
    best = _lines(deployment, healthy, job, size)
    while low < high and best is not None:
        middle = (low + high + 1) // 2
        usable = rows.copy()
        usable[:, :middle] &= rows[:, :middle].all(0)
        sets = _lines(deployment, usable.ravel(), job, size)
        if sets is None:
            high = middle - 1
        else:
            low, best = middle, sets
    return best


def _aligned(deployment: Deployment, healthy: Healthy, job: Job, size: int) -> Sets | None:
    """Best of several views of all sets aligned within their lines.

    Where the lines do not hold the job, as many leading columns are aligned as leave room for the rest elsewhere.
    """
    views = _views(deployment, healthy, job)
    best = _best(deployment, (_by_lines(view, healthy, job, size, alignment.align) for view in views))
    if best is None:
        best = _best(deployment, (_mixed(view, healthy, job, size) for view in views))
    return best


def _best(deployment: Deployment, tries: Iterable[Sets | None]) -> Sets | None:
    """Sets with the fewest hops between ToRs once shards follow ToRs. The first without any ends the search."""
    best, least = None, -1
    for sets in tries:
        if sets is None:
            continue
        followed = align_shards(sets, deployment.tors)
        cost = crossings(followed % deployment.tors)
        if best is None or cost < least:
            best, least = followed, cost
        if not cost:
            break
    return best


def _exact(deployment: Deployment, healthy: Healthy, job: Job, size: int) -> Sets:
    if job.dp != 2:
        raise exact.TooLarge(f"dp={job.dp}: the exact optimum is for pairs of groups")
    return align_shards(exact.optimum(deployment.ring, deployment.tors, healthy, size, job.pp), deployment.tors)


def _aligned_or_exact(deployment: Deployment, healthy: Healthy, job: Job, size: int) -> Sets | None:
    sets = _aligned(deployment, healthy, job, size)
    if sets is None or not crossings(sets % deployment.tors):
        return sets
    try:
        return _exact(deployment, healthy, job, size)
    except exact.TooLarge:
        return sets


def _views(deployment: Deployment, healthy: Healthy, job: Job) -> list[View]:
    """Views to try: the lines as they are, those with the same faults bundled, and lines that begin at other ToRs."""
    lines = deployment.per_tor
    width = _width(deployment, job) or lines
    views = []
    count = max(2, min(deployment.tors, MAX_VIEW_WORK // deployment.ring.nodes))
    for offset in np.linspace(0, deployment.tors, count, endpoint=False).astype(int).tolist():
        view = View(deployment, offset, tuple(range(lines)))
        orders = [view.order, _alike(view.lines(healthy), width)]
        if lines <= MAX_PERMUTED_LINES:
            orders += permutations(range(lines))
        views += [View(deployment, offset, order) for order in dict.fromkeys(orders)]
    return views


def _alike(lines_LT: Healthy, width: int) -> tuple[int, ...]:
    """Order of the lines in which each is followed by the one with the most similar faults.

    A bundle begins with the lowest line that is left.
    """
    apart = (lines_LT[:, None] != lines_LT[None]).sum(2)
    left, order = list(range(len(lines_LT))), list[int]()
    while left:
        near = left[0] if len(order) % width == 0 else min(left, key=lambda line: int(apart[order[-1], line]))
        left.remove(near)
        order.append(near)
    return tuple(order)


def _mixed(view: View, healthy: Healthy, job: Job, size: int) -> Sets:
    """Aligned sets in the first columns, and the other groups from the rest of the ring.

    As many sets are aligned as leave room for the others (binary search).
    """
    deployment = view.deployment
    best, low, high = _rest(deployment, healthy, job, size, job.pp), 0, deployment.tors // size
    while low < high and _width(deployment, job) == job.dp:
        middle = (low + high + 1) // 2
        aligned = _leading(view, healthy, job, size, middle * size)
        free = healthy.copy()
        free[aligned.ravel()] = False
        if len(aligned) < job.pp and len(_cut(deployment.ring, free, size)) >= (job.pp - len(aligned)) * job.dp:
            low = middle
            best = np.concatenate([aligned, _rest(deployment, free, job, size, job.pp - len(aligned))])
        else:
            high = middle - 1
    return best


def _leading(view: View, healthy: Healthy, job: Job, size: int, columns: int) -> Sets:
    """Aligned sets in the first columns, as many as fit."""
    hops, sets = view.deployment.ring.hops, []
    part = view.lines(healthy)[:, :columns]
    for first in range(0, len(part), job.dp):
        bundle = part[first : first + job.dp]
        chosen = alignment.align(bundle, int(alignment.capacity(bundle, size, hops).min()), size, hops)
        sets += [] if chosen is None else [view.positions(first, chosen)]
    return np.concatenate([np.empty((0, job.dp, size), np.int64), *sets])[: job.pp]


def _rest(deployment: Deployment, free: Healthy, job: Job, size: int, sets: int) -> Sets:
    """Sets of the first chains of the free nodes. Each set begins with the first one left and continues with the most
    alike."""
    chains = _cut(deployment.ring, free, size)
    chains = chains[np.argsort(chains[:, 0] % deployment.tors, kind="stable")]
    under = np.zeros((len(chains), deployment.tors))
    np.put_along_axis(under, chains % deployment.tors, 1.0, 1)
    alike = under @ under.T
    left, taken = np.ones(len(chains), bool), list[int]()
    for place in range(sets * job.dp):
        following = place % job.dp
        chosen = int(np.argmax(np.where(left, alike[taken[-1]] if following else 0.0, -1.0)))
        left[chosen] = False
        taken.append(chosen)
    return chains[taken].reshape(sets, job.dp, size)


def align_shards(sets_SDM: Sets, tors: int) -> Sets:
    """Reorder the nodes of each group so that a shard stays under its ToR from group to group where possible.

    The ring of a group does not depend on this order.
    """
    ordered = sets_SDM.copy()
    for groups in ordered:
        last = {int(node) % tors: shard for shard, node in enumerate(groups[0])}  # ToR -> the shard last seen there
        for before, group in pairwise(groups):
            group[:] = _matched(group.tolist(), (before % tors).tolist(), last, tors)
            last |= {node % tors: shard for shard, node in enumerate(group.tolist())}
    return ordered


def _matched(nodes: list[int], before: list[int], last: dict[int, int], tors: int) -> list[int]:
    """Nodes by shard: those under the ToR of the shard's node in the group before, then those whose ToR held a shard in
    an earlier group, then the others."""
    shard_of = {tor: shard for shard, tor in enumerate(before)}
    node_of_shard: dict[int, int] = {}
    for shard_of_tor in (shard_of, last):
        for node in nodes:
            shard = shard_of_tor.get(node % tors)
            if shard is not None and shard not in node_of_shard and node not in node_of_shard.values():
                node_of_shard[shard] = node
    left = iter([node for node in nodes if node not in node_of_shard.values()])
    return [node_of_shard[shard] if shard in node_of_shard else next(left) for shard in range(len(nodes))]
