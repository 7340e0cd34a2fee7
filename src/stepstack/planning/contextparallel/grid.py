"""Cost of one grid of ranks for one layer. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stepstack.planning import assignment
from stepstack.planning.contextparallel.problem import Array, Cluster, Inner, PlanOptions, Profile


def ranks_of(hcp: int, scp: int, inner: Inner) -> tuple[tuple[int, ...], ...]:
    if inner == "hcp":
        return tuple(tuple(column * hcp + row for column in range(scp)) for row in range(hcp))
    return tuple(tuple(row * scp + column for column in range(scp)) for row in range(hcp))


class RankGrid:
    """Costs of one layer on one grid of ranks. Axes of the arrays: rows a (P of them), columns b (G), heads h."""

    def __init__(self, profile: Profile, layer: int, cluster: Cluster, options: PlanOptions, hcp: int, inner: Inner):
        layout, data = profile.layout, profile.layers[layer]
        self.cluster, self.options = cluster, options
        self.hcp, self.scp, self.inner = hcp, layout.ranks // hcp, inner
        self.heads, self.burdens = data.need.shape[1], data.burdens
        self.at = np.array(ranks_of(hcp, self.scp, inner))
        samples, unit = data.need.shape[0], profile.head_dim * profile.element_bytes
        queries, keys = (
            np.array([len(layout.tokens(kind, rank)) for rank in range(layout.ranks)], float)[self.at]
            for kind in ("queries", "keys")
        )
        # Bytes of one head in a rank's shard, two of [P, G]: of q, k and v, and of the output.
        self.tensors = samples * unit * (queries + 2 * keys), samples * unit * queries
        need = data.need[:, :, self.at].max(axis=2)  # [B, H, G, K]
        tokens = need * np.array(layout.keys, float)
        starts = [layout.blocks("keys", rank).start for rank in range(layout.ranks)]
        shards = np.add.reduceat(tokens, starts, axis=3).sum(axis=0)  # [H, G, N]: from each rank's shard
        # Bytes of k and v of a head [H, G, G] that column b fetches from column c.
        self.kv = 2 * unit * shards[:, :, self.at].sum(axis=2) * (1 - np.eye(self.scp))
        rows, length = queries.sum(axis=0), float(sum(layout.keys))
        density = data.pairs[:, :, self.at].sum(axis=2) / (rows * length)  # [B, H, G]
        share = rows / sum(layout.queries)
        self.comp = (cluster.compute.time(length, 1 - density) * share).sum(axis=0)  # [H, G]
        node = self.at // cluster.ranks_per_node
        same = node[:, None] == node[None]  # [P, P, G]
        others = ~np.eye(hcp, dtype=bool)[:, :, None]
        # For each kind of link and both tensors: the bytes that a rank sends for one head of row q, [q, P, G], and
        # receives for one head of its own, [P, G].
        self.exchanges = [
            [((mask * bytes[:, None]).transpose(1, 0, 2), (mask * bytes[None]).sum(axis=1)) for bytes in self.tensors]
            for mask in (same & others, ~same)
        ]
        same = node[:, :, None] == node[:, None]  # [P, G, G]
        self.fetches = [(kv_mask & ~np.eye(self.scp, dtype=bool)) for kv_mask in (same, ~same)]
        self.links = (cluster.intra, cluster.inter)

    def score(self, rows: NDArray[np.intp]) -> tuple[Array, Array]:
        """Two costs [M] of M assignments [M, H] of heads to rows, the smaller the better.

        The first is the seconds of the slowest rank, plus a penalty that outweighs everything where memory does not
        suffice. The second measures how uneven the ranks are.
        """
        parts = self._parts(rows)
        seconds = parts["comm"] + parts["comp"]
        excess = np.maximum(parts["memory"].max(axis=(1, 2)) / self.cluster.memory - 1, 0.0)
        return seconds.max(axis=(1, 2)) + 1e9 * excess, np.square(seconds).sum(axis=(1, 2))

    @cached_property
    def bound(self) -> float:
        """Lower bound of the seconds of any assignment.

        It is the larger of two bounds: the average over the ranks of a column, and the heaviest head alone, each with
        the least that exchanging heads can cost.
        """
        if self.hcp == 1:
            return float(self.score(np.zeros((1, self.heads), np.intp))[0][0])
        counts = np.arange(1, self.heads - self.hcp + 2)[:, None, None]
        received = np.zeros((len(counts), *self.at.shape))
        for tensor in range(2):
            kinds = zip(self.links, self.exchanges, strict=True)
            received += np.maximum(*(link.time(counts * kind[tensor][1]) for link, kind in kinds))
        received = received.min(axis=0)  # [P, G], whatever the other rows' counts are
        each = self._fetch(self.kv[:, None]).min(axis=1)  # [H, G]
        together = [
            link.min_seconds_per_byte * (self.kv[:, None] * mask).sum(axis=axis).min(axis=1).sum(axis=0)
            for link, mask in zip(self.links, self.fetches, strict=True)
            for axis in (2, 3)
        ]  # of all rows [G]
        average = self.options.passes * (received.mean(axis=0) + np.max(together, axis=0) / self.hcp)
        alone = self.options.passes * (received.min(axis=0) + each) + self.comp
        return float(max((average + self.comp.sum(axis=0) / self.hcp).max(), alone.max()))

    def layer_plan(self, rows: NDArray[np.intp], bound: float | None) -> LayerPlan:
        """Plan with one assignment of heads. ``bound`` None takes the assignment's own time, for the best of all."""
        parts = {name: part[0] for name, part in self._parts(rows[None]).items()}
        names = ("hcp_sent", "hcp_received", "scp_sent", "scp_received", "memory")
        ranks = {
            int(self.at[a, b]): Rank(
                float(parts["comm"][a, b]), float(parts["comp"][a, b]), *(round(parts[name][a, b]) for name in names)
            )
            for a, b in np.ndindex(self.at.shape)
        }
        heads = tuple(tuple(int(h) for h in np.flatnonzero(rows == row)) for row in range(self.hcp))
        costs = tuple(ranks[rank] for rank in range(len(ranks)))
        least = max(rank.seconds for rank in costs) if bound is None else bound
        return LayerPlan(self.hcp, self.scp, self.inner, heads, costs, least)

    def search(self, restarts: int) -> tuple[LayerPlan, float]:
        """Best assignment of heads found, and its score with the penalty for memory."""
        rows, tried_all = assignment.search(
            self.score, self.burdens, self.hcp, self.options.exact, restarts, self.options.seed
        )
        return self.layer_plan(rows, None if tried_all else self.bound), float(self.score(rows[None])[0][0])

    def fits(self, layer_plan: LayerPlan) -> bool:
        return max(rank.memory for rank in layer_plan.ranks) <= self.cluster.memory

    def _parts(self, rows: NDArray[np.intp]) -> dict[str, Array]:
        """Seconds and bytes [M, P, G] of M assignments."""
        onehot = (rows[:, None, :] == np.arange(self.hcp)[:, None]).astype(float)  # [M, P, H]
        counts = onehot.sum(axis=2)  # [M, P]
        kv = (onehot @ self.kv.reshape(self.heads, -1)).reshape(*counts.shape, self.scp, self.scp)
        others = (self.heads - counts)[:, :, None]
        own, (qkv, out) = counts[:, :, None], self.tensors
        column_qkv, column_out = qkv.sum(axis=0), out.sum(axis=0)
        exchanged = own * (column_qkv + column_out) if self.hcp > 1 else 0.0
        return {
            "comm": self.options.passes * (self._exchange(counts) + self._fetch(kv)),
            "comp": onehot @ self.comp,
            "hcp_sent": others * qkv + own * (column_out - out),
            "hcp_received": own * (column_qkv - qkv) + others * out,
            "scp_sent": kv.sum(axis=2),
            "scp_received": kv.sum(axis=3),
            "memory": self.heads * (qkv + out) + exchanged + kv.sum(axis=3),
        }

    def _exchange(self, counts: Array) -> Array:
        """Seconds [M, P, G] of both all-to-alls in columns.

        Each takes max(H_i^r (N-1)/N, (H - H_i^r)/N) S D a tensor in v3 of the paper; here for shards of any size. On
        the way back the two directions change places, so the maximum is the same.
        """
        total = np.zeros((len(counts), *self.at.shape))
        for tensor in range(2):
            times = []
            for link, kind in zip(self.links, self.exchanges, strict=True):
                give, take = kind[tensor]
                sent = (counts @ give.reshape(self.hcp, -1)).reshape(-1, *self.at.shape)
                times.append(link.time(np.maximum(sent, counts[:, :, None] * take)))
            total += np.maximum(*times)  # both kinds of links work at the same time
        return total

    def _fetch(self, kv: Array) -> Array:
        """Seconds [M, P, G] of gathering ``kv`` [M, P, G, G], (2 H D S / N) max(sum_j a_i^j, sum_j a_j^i) in v3 of the
        paper."""
        times = []
        for link, mask in zip(self.links, self.fetches, strict=True):
            there = kv * mask
            times.append(link.time(np.maximum(there.sum(axis=2), there.sum(axis=3))))
        return np.maximum(*times)


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
