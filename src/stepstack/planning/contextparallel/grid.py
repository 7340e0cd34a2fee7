"""Cost of one grid of ranks for one layer. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stepstack.planning import assignment
from stepstack.planning.contextparallel.problem import Array, Cluster, Inner, PlanOptions, Profile
from stepstack.planning.timing import Link

Flags = NDArray[np.bool_]


def ranks_of(hcp: int, scp: int, inner: Inner) -> tuple[tuple[int, ...], ...]:
    if inner == "hcp":
        return tuple(tuple(column * hcp + row for column in range(scp)) for row in range(hcp))
    return tuple(tuple(row * scp + column for column in range(scp)) for row in range(hcp))


def _used(cluster: Cluster, within: Flags, between: Flags) -> list[tuple[Link, Flags]]:
    """Links within and between nodes, with the messages that go over them, but for links that carry nothing; one at
    least."""
    kinds = [(cluster.intra, within), (cluster.inter, between)]
    return [kind for kind in kinds if kind[1].any()] or kinds[:1]


def _by_head(onehot: Array, each: Array) -> Array:
    """Sum [P, M, G] over the heads of a row of what ``each`` [H, G] costs. One matrix product is faster than P."""
    return (onehot.reshape(-1, len(each)) @ each).reshape(*onehot.shape[:2], -1)


class RankGrid:
    """Costs of one layer on one grid of ranks. Axes of the arrays: rows a (P of them), columns b (G), heads h, and
    between rows and columns the assignments (M of them), so that every step runs along memory."""

    def __init__(self, profile: Profile, layer: int, cluster: Cluster, options: PlanOptions, hcp: int, inner: Inner):
        layout, data = profile.layout, profile.layers[layer]
        self.cluster, self.options = cluster, options
        self.hcp, self.scp, self.inner = hcp, layout.ranks // hcp, inner
        self.heads, self.burdens = data.need.shape[1], data.burdens
        self.at = np.array(ranks_of(hcp, self.scp, inner))
        self.ends: assignment.Ends = {}
        samples, unit = data.need.shape[0], profile.head_dim * profile.element_bytes
        queries, keys = (np.array(layout.shard_sizes(kind), float)[self.at] for kind in ("queries", "keys"))
        # Bytes of one head in a rank's shard, two of [P, G]: of q, k and v, and of the output.
        self.tensors = samples * unit * (queries + 2 * keys), samples * unit * queries
        tokens = data.need[:, :, self.at[0]]  # [B, H, G, K]: what a whole column needs
        for row in self.at[1:]:
            np.maximum(tokens, data.need[:, :, row], out=tokens)
        tokens *= np.array(layout.keys, float)
        starts = [layout.blocks("keys", rank).start for rank in range(layout.ranks)]
        shards = np.add.reduceat(tokens, starts, axis=3).sum(axis=0)  # [H, G, N]: from each rank's shard
        # Bytes of k and v of a head [H, G, G] that column b fetches from column c.
        self.kv = 2 * unit * shards[:, :, self.at].sum(axis=2) * (1 - np.eye(self.scp))
        self.received = self.kv.sum(axis=2)  # [H, G]
        rows, length = queries.sum(axis=0), float(sum(layout.keys))
        density = data.pairs[:, :, self.at].sum(axis=2) / (rows * length)  # [B, H, G]
        share = rows / sum(layout.queries)
        self.comp = (cluster.compute.time(length, 1 - density) * share).sum(axis=0)  # [H, G]
        node = self.at // cluster.ranks_per_node
        same = node[:, None] == node[None]  # [P, P, G]
        tensors = np.stack(self.tensors)
        # For each kind of link that is used: the bytes of both tensors that a rank sends for one head of row q,
        # [2, P, q, G], and receives for one head of its own, [2, P, G].
        self.exchanges = [
            (link, mask * tensors[:, :, None], (mask * tensors[:, None]).sum(axis=2))
            for link, mask in _used(cluster, same & ~np.eye(hcp, dtype=bool)[:, :, None], ~same)
        ]
        same = node[:, :, None] == node[:, None]  # [P, G, G]
        # Likewise the bytes of k and v of one head that a rank sends and receives in its row, [P, H, G].
        self.fetches = [
            (link, *((self.kv[:, None] * mask).sum(axis=axis).transpose(1, 0, 2) for axis in (2, 3)))
            for link, mask in _used(cluster, same & ~np.eye(self.scp, dtype=bool), ~same)
        ]

    def score(self, rows: NDArray[np.intp]) -> tuple[Array, Array]:
        """Two costs [M] of M assignments [M, H] of heads to rows, the smaller the better.

        The first is the seconds of the slowest rank, plus a penalty that outweighs everything where memory does not
        suffice. The second measures how uneven the ranks are.
        """
        onehot = self._onehot(rows)
        seconds = (self._comm(onehot) + self._comp(onehot)).transpose(1, 0, 2).reshape(len(rows), -1)
        slowest = seconds.max(axis=1)
        if not self.always_fits:
            memory = self._memory(onehot).max(axis=(0, 2))
            slowest += 1e9 * np.maximum(memory / self.cluster.memory - 1, 0.0)
        return slowest, np.square(seconds).sum(axis=1)

    @cached_property
    def always_fits(self) -> bool:
        """Whether memory suffices even for a row with as many heads as it can have that fetches all that any heads
        need."""
        most = np.full((self.hcp, 1), float(self.heads - self.hcp + 1))
        return bool((self._shards(most)[:, 0] + self.received.sum(axis=0)).max() <= self.cluster.memory)

    @cached_property
    def bound(self) -> float:
        """Lower bound of the seconds of any assignment.

        It is the larger of two bounds: the average over the ranks of a column, and the heaviest head alone, each with
        the least that exchanging heads can cost.
        """
        if self.hcp == 1:
            return float(self.score(np.zeros((1, self.heads), np.intp))[0][0])
        counts = np.arange(1, self.heads - self.hcp + 2)[:, None, None, None]
        received = np.maximum.reduce([link.time(counts * take) for link, _, take in self.exchanges]).sum(axis=1)
        received = received.min(axis=0)  # [P, G], whatever the other rows' counts are
        alone = np.eye(self.heads)[None].repeat(self.hcp, axis=0)  # each head by itself, in whichever row
        each = self._fetch(alone).min(axis=0)  # [H, G]
        together = [
            link.min_seconds_per_byte * moved.min(axis=0).sum(axis=0) for link, *both in self.fetches for moved in both
        ]  # of all rows [G]
        average = self.options.passes * (received.mean(axis=0) + np.max(together, axis=0) / self.hcp)
        heaviest = self.options.passes * (received.min(axis=0) + each) + self.comp
        return float(max((average + self.comp.sum(axis=0) / self.hcp).max(), heaviest.max()))

    def layer_plan(self, rows: NDArray[np.intp], bound: float | None) -> LayerPlan:
        """Plan with one assignment of heads. ``bound`` None takes the assignment's own time, for the best of all."""
        onehot = self._onehot(rows[None])
        figures = {"comm": self._comm(onehot), "comp": self._comp(onehot), "memory": self._memory(onehot)}
        parts = {name: part[:, 0] for name, part in (figures | self._bytes(onehot)).items()}
        names = ("hcp_sent", "hcp_received", "scp_sent", "scp_received", "memory")
        ranks = {
            int(self.at[a, b]): Rank(
                float(parts["comm"][a, b]),
                float(parts["comp"][a, b]),
                *(round(float(parts[name][a, b])) for name in names),
            )
            for a, b in np.ndindex(self.at.shape)
        }
        heads = tuple(tuple(int(h) for h in np.flatnonzero(rows == row)) for row in range(self.hcp))
        costs = tuple(ranks[rank] for rank in range(len(ranks)))
        least = max(rank.seconds for rank in costs) if bound is None else bound
        return LayerPlan(self.hcp, self.scp, self.inner, heads, costs, least)

    def search(self, restarts: int) -> tuple[LayerPlan, float]:
        """Best assignment of heads found, and its score with the penalty for memory."""
        rows, exhaustive = assignment.search(
            self.score, self.burdens, self.hcp, self.options.exact, restarts, self.options.seed, self.ends
        )
        return self.layer_plan(rows, None if exhaustive else self.bound), float(self.score(rows[None])[0][0])

    def fits(self, layer_plan: LayerPlan) -> bool:
        return max(rank.memory for rank in layer_plan.ranks) <= self.cluster.memory

    def _onehot(self, rows: NDArray[np.intp]) -> Array:
        """Whether a head is in a row, 0 or 1, [P, M, H] for M assignments."""
        return (rows == np.arange(self.hcp)[:, None, None]).astype(float)

    def _comm(self, onehot: Array) -> Array:
        """Seconds [P, M, G] that ranks communicate in M assignments."""
        return self.options.passes * (self._exchange(onehot.sum(axis=2)) + self._fetch(onehot))

    def _comp(self, onehot: Array) -> Array:
        """Seconds [P, M, G] that ranks compute in M assignments."""
        return _by_head(onehot, self.comp)

    def _memory(self, onehot: Array) -> Array:
        """Bytes [P, M, G] of the ranks' tensors in M assignments."""
        return self._shards(onehot.sum(axis=2)) + _by_head(onehot, self.received)

    def _shards(self, counts: Array) -> Array:
        """Bytes [P, M, G] before and after the exchange of heads, where rows have ``counts`` [P, M] heads."""
        qkv, out = self.tensors
        exchanged = counts[:, :, None] * (qkv.sum(axis=0) + out.sum(axis=0)) if self.hcp > 1 else 0.0
        return self.heads * (qkv + out)[:, None] + exchanged

    def _bytes(self, onehot: Array) -> dict[str, Array]:
        """Bytes sent and received [P, M, G] in M assignments."""
        own, (qkv, out) = onehot.sum(axis=2)[:, :, None], self.tensors
        others = self.heads - own
        return {
            "hcp_sent": others * qkv[:, None] + own * (out.sum(axis=0) - out)[:, None],
            "hcp_received": own * (qkv.sum(axis=0) - qkv)[:, None] + others * out[:, None],
            "scp_sent": _by_head(onehot, self.kv.sum(axis=1)),
            "scp_received": _by_head(onehot, self.received),
        }

    def _exchange(self, counts: Array) -> Array:
        """Seconds [P, M, G] of both all-to-alls in columns, where rows have ``counts`` [P, M] heads.

        Each takes max(H_i^r (N-1)/N, (H - H_i^r)/N) S D a tensor in v3 of the paper; here for shards of any size. On
        the way back the two directions change places, so the maximum is the same.
        """
        own = counts[:, :, None]
        times = [link.time(np.maximum(counts.T @ give, own * take[:, :, None])) for link, give, take in self.exchanges]
        return np.maximum.reduce(times).sum(axis=0)  # all kinds of links work at the same time

    def _fetch(self, onehot: Array) -> Array:
        """Seconds [P, M, G] of gathering k and v within rows, (2 H D S / N) max(sum_j a_i^j, sum_j a_j^i) in v3 of the
        paper."""
        times = [link.time(np.maximum(onehot @ sent, onehot @ received)) for link, sent, received in self.fetches]
        return np.maximum.reduce(times)


@dataclass(frozen=True, slots=True)
class Rank:
    """Cost of one rank in one layer.

    Seconds count all passes. Bytes are those of the forward pass, whose adjoint moves the same bytes the other way.
    ``memory`` is in bytes.
    """

    comm: float
    comp: float
    hcp_sent: int
    hcp_received: int
    scp_sent: int
    scp_received: int
    memory: int

    @property
    def seconds(self) -> float:
        return self.comm + self.comp


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Plan of one layer: ``heads[a]`` are the heads of the ranks in row a.

    No assignment of heads to these rows takes fewer seconds than ``bound``, so the best plan of this shape is at most
    ``gap`` faster (a fraction; 0 where all were tried).
    """

    hcp: int
    scp: int
    inner: Inner
    heads: tuple[tuple[int, ...], ...]
    ranks: tuple[Rank, ...] = field(repr=False)
    bound: float

    @property
    def seconds(self) -> float:
        return max(rank.seconds for rank in self.ranks)

    @property
    def gap(self) -> float:
        return self.seconds / self.bound - 1 if self.bound else 0.0

    @property
    def grid(self) -> tuple[tuple[int, ...], ...]:
        """Ranks as ``hcp`` rows of ``scp``. A column shares queries, a row shares heads."""
        return ranks_of(self.hcp, self.scp, self.inner)

    def place(self, rank: int) -> tuple[int, int]:
        """Row and column of a rank."""
        return (rank % self.hcp, rank // self.hcp) if self.inner == "hcp" else (rank // self.scp, rank % self.scp)
