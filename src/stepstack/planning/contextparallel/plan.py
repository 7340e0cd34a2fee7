"""Context parallelism for sparse attention: which rank computes which heads of which queries (DSV, arXiv 2502.07590 v3,
section 7; v1 has the same section with simpler formulas). No torch.

N ranks hold one shard each of the sequence, all heads. For each transformer block ("layer" here, since the paper's word
also names blocks of keys) they form a grid of ``hcp`` rows and ``scp`` columns. Within a column heads are exchanged for
queries (head-wise: uneven all-to-all), so that a rank has the queries of all its column and the heads of its row;
within a row it then fetches the keys and values that those queries attend to and it lacks (sequence-wise: selective
gather).
(hcp, scp) = (N, 1) is Ulysses with heads placed by work, (1, N) is a gather of critical KV alone.

``plan`` minimises, layer by layer, the largest communication plus computation time of any rank, subject to its memory,
with hcp * scp = N and hcp <= heads (v1 section 7.2, whose constraint (b) prints that bound on scp, its text on hcp).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from stepstack.config import Strict
from stepstack.planning import assignment
from stepstack.planning.timing import Attention, Link

CLOSE = 1.25  # times the best so far: a quick search that ends further off is not repeated thoroughly
Inner = Literal["hcp", "scp"]  # whose groups are neighbouring ranks, and so share a node if they fit
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster(Strict):
    """``memory``: bytes that a rank has for the tensors of one layer's attention. ``compute``: of all passes of
    ``PlanOptions``."""

    ranks: PositiveInt
    ranks_per_node: PositiveInt
    memory: Annotated[float, Field(gt=0)]
    intra: Link
    inter: Link
    compute: Attention


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions(Strict):
    """``passes``: how often bytes move, forward and its adjoint. ``exact``: all assignments of heads are tried where
    there are no more. ``restarts``: of the local search elsewhere, drawn from ``seed``. ``shapes``: of the grid, (hcp,
    scp); all that the ranks allow where None."""

    passes: PositiveInt = 2
    exact: NonNegativeInt = 20_000
    restarts: NonNegativeInt = 16
    seed: int = 0
    shapes: tuple[tuple[PositiveInt, PositiveInt], ...] | None = None


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """How the sequence is cut: tokens of each block of queries and of keys, and the first block of each rank's shard
    (ranks + 1 of them). Shards of k ranks in a row are the shards of a layout with a k-th of the ranks."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    ranks: int

    def __post_init__(self) -> None:
        if self.ranks < 1 or min(len(self.queries), len(self.keys)) < self.ranks:
            raise ValueError(
                f"{len(self.queries)} query and {len(self.keys)} key blocks cannot be cut for {self.ranks} ranks: "
                "each needs a block of both; take fewer ranks or smaller blocks"
            )

    def blocks(self, kind: Literal["queries", "keys"], rank: int) -> range:
        """The blocks of a rank's shard."""
        count = len(self.queries if kind == "queries" else self.keys)
        return range(rank * count // self.ranks, (rank + 1) * count // self.ranks)

    def tokens(self, kind: Literal["queries", "keys"], rank: int) -> range:
        """The tokens of a rank's shard: what it holds of the sequence."""
        sizes = self.queries if kind == "queries" else self.keys
        blocks = self.blocks(kind, rank)
        start = sum(sizes[: blocks.start])
        return range(start, start + sum(sizes[blocks.start : blocks.stop]))


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """What the queries of each rank's shard attend to, of B samples and H heads.

    ``pairs`` [B, H, N]: (query, key) token pairs kept. ``need`` [B, H, N, K]: the share of each of K key blocks that
    some query of the shard keeps, 0 or 1 where the lists are known.
    """

    pairs: Array
    need: Array

    @classmethod
    def of_mask(cls, mask: NDArray[np.bool_], layout: BlockLayout) -> Layer:
        """Of a selection: ``mask`` [B, H, query blocks, key blocks], true where the block of keys is kept."""
        if mask.ndim != 4 or mask.shape[2:] != (len(layout.queries), len(layout.keys)):
            raise ValueError(
                f"mask {list(mask.shape)} must be [samples, heads, {len(layout.queries)} query blocks, "
                f"{len(layout.keys)} key blocks]"
            )
        starts = [layout.blocks("queries", rank).start for rank in range(layout.ranks)]
        rows = mask @ np.array(layout.keys, float) * np.array(layout.queries, float)
        return cls(np.add.reduceat(rows, starts, axis=2), np.logical_or.reduceat(mask, starts, axis=2).astype(float))

    @classmethod
    def of_sparsity(cls, sparsity: Sequence[float], layout: BlockLayout) -> Layer:
        """Of a profile of heads: every query of a head keeps the same ``1 - sparsity`` of all keys, spread evenly, as
        in v1's formulas. Queries that differ need more remote KV than this says."""
        kept = 1.0 - np.array(sparsity, float)
        if kept.ndim != 1 or not (kept.size and kept.min() >= 0 and kept.max() <= 1):
            raise ValueError(f"sparsity must be one number in [0, 1] a head, got {list(sparsity)}")
        queries = np.array([len(layout.tokens("queries", rank)) for rank in range(layout.ranks)], float)
        pairs = kept[:, None] * queries * sum(layout.keys)
        need = np.broadcast_to(kept[:, None, None], (len(kept), layout.ranks, len(layout.keys)))
        return cls(pairs[None], need[None])

    @property
    def burdens(self) -> Array:
        """[H]: what a head costs wherever it goes; 1 - sparsity in other units."""
        return self.pairs.sum(axis=(0, 2))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Profile:
    """What is to be planned. ``element_bytes``: of an element of q, k and v."""

    layout: BlockLayout
    head_dim: PositiveInt
    layers: tuple[Layer, ...]
    element_bytes: PositiveInt = 2


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank in one layer. Seconds of all passes; bytes are of the forward pass, whose adjoint moves the same bytes
    the other way; ``memory`` in bytes."""

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
    """``heads[a]``: of the ranks in row a. ``bound``: no assignment of heads to these rows takes fewer seconds, and so
    ``gap`` is the most that the plan could be above the best one of its shape; 0 where all were tried."""

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
        """The ranks: ``hcp`` rows of ``scp``. A column shares queries, a row shares heads."""
        return _grid(self.hcp, self.scp, self.inner)

    def place(self, rank: int) -> tuple[int, int]:
        """Row and column of a rank."""
        return (rank % self.hcp, rank // self.hcp) if self.inner == "hcp" else (rank // self.scp, rank % self.scp)


@dataclass(frozen=True, slots=True)
class Plan:
    layout: BlockLayout
    heads: int
    head_dim: int
    layers: tuple[LayerPlan, ...]

    @property
    def seconds(self) -> float:
        return sum(layer.seconds for layer in self.layers)

    @property
    def digest(self) -> str:
        """The same for equal plans, in every process."""
        return hashlib.sha256(repr((self.layout, self.heads, self.head_dim, self.layers)).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Raises ValueError for a plan that could not be carried out, naming layer and rule."""
        for number, layer in enumerate(self.layers):
            if len(layer.ranks) != self.layout.ranks:
                raise ValueError(f"plan of layer {number}: every rank must have its costs, {len(layer.ranks)} have")
            rules = {
                f"hcp * scp = {layer.hcp} * {layer.scp} must be the {self.layout.ranks} ranks": (
                    layer.hcp * layer.scp == self.layout.ranks
                ),
                f"hcp = {layer.hcp} must be at most the {self.heads} heads": layer.hcp <= self.heads,
                f"{len(layer.heads)} rows of heads must be hcp = {layer.hcp}": len(layer.heads) == layer.hcp,
                "every row must have a head": all(layer.heads),
                f"rows must have each of {self.heads} heads once, ascending": (
                    sorted(itertools.chain(*layer.heads)) == list(range(self.heads))
                    and all(list(row) == sorted(row) for row in layer.heads)
                ),
                "what is sent must be received": (
                    abs(sum(r.hcp_sent - r.hcp_received for r in layer.ranks)) <= layer.hcp * layer.scp  # rounded
                    and abs(sum(r.scp_sent - r.scp_received for r in layer.ranks)) <= layer.hcp * layer.scp
                ),
                "the bound must not be above the plan": layer.bound <= layer.seconds * (1 + 1e-9),
            }
            for rule, holds in rules.items():
                if not holds:
                    raise ValueError(f"plan of layer {number}: {rule}")


def plan(
    profile: Profile,
    cluster: Cluster,
    options: PlanOptions | None = None,
    watch: Callable[[range], Iterable[int]] = iter,
) -> Plan:
    """The fastest grid and placement of heads for each layer; pure: the same arguments give the same plan. ``watch``
    passes the layers' numbers on, e.g. past a progress bar.

    Raises ValueError for ranks or heads that do not agree and for a layer that fits into no grid's memory.
    """
    options = options or PlanOptions()
    layout = profile.layout
    if layout.ranks != cluster.ranks:
        raise ValueError(f"the profile is cut for {layout.ranks} ranks, the cluster has {cluster.ranks}")
    if not profile.layers:
        raise ValueError("the profile has no layers")
    heads = profile.layers[0].need.shape[1]
    for number, layer in enumerate(profile.layers):
        if layer.need.shape[1:] != (heads, layout.ranks, len(layout.keys)) or layer.pairs.shape != layer.need.shape[:3]:
            raise ValueError(
                f"layer {number}: need {list(layer.need.shape)} and pairs {list(layer.pairs.shape)} must be "
                f"[samples, {heads} heads, {layout.ranks} ranks] and {len(layout.keys)} key blocks"
            )
    shapes = list(_shapes(cluster.ranks, heads, options))
    if not shapes:
        raise ValueError(f"no grid (hcp, scp) in {options.shapes} has hcp * scp = {cluster.ranks} and hcp <= {heads}")
    layers = tuple(_best(profile, number, cluster, options, shapes) for number in watch(range(len(profile.layers))))
    made = Plan(layout, heads, profile.head_dim, layers)
    made.check()
    return made


def cost(
    profile: Profile, layer: int, cluster: Cluster, options: PlanOptions, inner: Inner, heads: Sequence[Sequence[int]]
) -> LayerPlan:
    """A layer with heads placed as told, e.g. in order of their numbers: what a plan is compared with. Its ``bound`` is
    its own time."""
    grid = Grid(profile, layer, cluster, options, len(heads), inner)
    rows = np.empty(grid.heads, int)
    for row, own in enumerate(heads):
        rows[list(own)] = row
    return grid.planned(rows, None)


def in_order(heads: int, rows: int) -> list[list[int]]:
    """Heads placed by number, as evenly as may be: what head-wise parallelism does that knows nothing of sparsity."""
    return [list(range(row * heads // rows, (row + 1) * heads // rows)) for row in range(rows)]


def _shapes(ranks: int, heads: int, options: PlanOptions) -> list[tuple[int, Inner]]:
    found: list[tuple[int, Inner]] = []
    for hcp in range(1, min(ranks, heads) + 1):
        if ranks % hcp == 0 and (options.shapes is None or (hcp, ranks // hcp) in options.shapes):
            found.append((hcp, "hcp"))
            if 1 < hcp < ranks:  # else both are the same grid
                found.append((hcp, "scp"))
    return found


def _best(
    profile: Profile, layer: int, cluster: Cluster, options: PlanOptions, shapes: list[tuple[int, Inner]]
) -> LayerPlan:
    """First a quick search on every grid whose bound allows it, then a thorough one on those that came close."""
    grids = [Grid(profile, layer, cluster, options, hcp, inner) for hcp, inner in shapes]
    quick: list[tuple[float, Grid]] = []
    least = np.inf
    for grid in sorted(grids, key=lambda grid: grid.bound):
        if grid.bound < least:
            quick.append((grid.search(0)[1], grid))
            least = min(least, quick[-1][0])
    best: LayerPlan | None = None
    for value, grid in sorted(quick, key=lambda pair: pair[0]):
        if best is None or (value <= CLOSE * best.seconds and grid.bound < best.seconds):
            found = grid.search(options.restarts)[0]
            if grid.fits(found) and (best is None or found.seconds < best.seconds):
                best = found
    if best is None:
        needed = min(max(rank.memory for rank in grid.search(0)[0].ranks) for grid in grids)
        raise ValueError(
            f"layer {layer}: no grid fits: the smallest needs {needed} bytes a rank, memory is {cluster.memory:.4g}"
        )
    return best


def _grid(hcp: int, scp: int, inner: Inner) -> tuple[tuple[int, ...], ...]:
    if inner == "hcp":
        return tuple(tuple(column * hcp + row for column in range(scp)) for row in range(hcp))
    return tuple(tuple(row * scp + column for column in range(scp)) for row in range(hcp))


class Grid:
    """Costs of one layer on one grid. Axes of its arrays: rows a (P of them), columns b (G), heads h."""

    def __init__(self, profile: Profile, layer: int, cluster: Cluster, options: PlanOptions, hcp: int, inner: Inner):
        layout, data = profile.layout, profile.layers[layer]
        self.cluster, self.options = cluster, options
        self.hcp, self.scp, self.inner = hcp, layout.ranks // hcp, inner
        self.heads, self.burdens = data.need.shape[1], data.burdens
        self.at = np.array(_grid(hcp, self.scp, inner))
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
        kept = data.pairs[:, :, self.at].sum(axis=2) / (rows * length)  # [B, H, G]
        share = rows / sum(layout.queries)
        self.comp = (cluster.compute.time(length, 1 - kept) * share).sum(axis=0)  # [H, G]
        node = self.at // cluster.ranks_per_node
        same = node[:, None] == node[None]  # [P, P, G]
        others = ~np.eye(hcp, dtype=bool)[:, :, None]
        # For each kind of link that columns have: seconds by bytes, and for both tensors the bytes a rank sends for one
        # head of row q, [q, P, G], and receives for one head of its own, [P, G].
        self.exchanges = [
            [((mask * bytes[:, None]).transpose(1, 0, 2), (mask * bytes[None]).sum(axis=1)) for bytes in self.tensors]
            for mask in (same & others, ~same)
        ]
        same = node[:, :, None] == node[:, None]  # [P, G, G]
        self.fetches = [(kv_mask & ~np.eye(self.scp, dtype=bool)) for kv_mask in (same, ~same)]
        self.links = (cluster.intra, cluster.inter)

    def score(self, rows: NDArray[np.intp]) -> tuple[Array, Array]:
        """For M assignments [M, H] of heads to rows, two numbers each, the smaller the better: the slowest rank's
        seconds, with a penalty that outweighs all where memory does not suffice; and how uneven ranks are."""
        parts = self._parts(rows)
        seconds = parts["comm"] + parts["comp"]
        excess = np.maximum(parts["memory"].max(axis=(1, 2)) / self.cluster.memory - 1, 0.0)
        return seconds.max(axis=(1, 2)) + 1e9 * excess, np.square(seconds).sum(axis=(1, 2))

    @cached_property
    def bound(self) -> float:
        """No assignment is faster: the average of the ranks of a column, and the heaviest head alone, each with the
        least that exchanging heads can cost."""
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
            link.least * (self.kv[:, None] * mask).sum(axis=axis).min(axis=1).sum(axis=0)
            for link, mask in zip(self.links, self.fetches, strict=True)
            for axis in (2, 3)
        ]  # of all rows [G]
        average = self.options.passes * (received.mean(axis=0) + np.max(together, axis=0) / self.hcp)
        alone = self.options.passes * (received.min(axis=0) + each) + self.comp
        return float(max((average + self.comp.sum(axis=0) / self.hcp).max(), alone.max()))

    def planned(self, rows: NDArray[np.intp], bound: float | None) -> LayerPlan:
        """The record of one assignment; ``bound`` None: its own time, for the best of all."""
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
        """The best placement of heads found, and its score with the penalty for memory."""
        rows, tried_all = assignment.search(
            self.score, self.burdens, self.hcp, self.options.exact, restarts, self.options.seed
        )
        return self.planned(rows, None if tried_all else self.bound), float(self.score(rows[None])[0][0])

    def fits(self, made: LayerPlan) -> bool:
        return max(rank.memory for rank in made.ranks) <= self.cluster.memory

    def _parts(self, rows: NDArray[np.intp]) -> dict[str, Array]:
        """Seconds and bytes [M, P, G] of M assignments."""
        onehot = (rows[:, None, :] == np.arange(self.hcp)[:, None]).astype(float)  # [M, P, H]
        counts = onehot.sum(axis=2)  # [M, P]
        kv = (onehot @ self.kv.reshape(self.heads, -1)).reshape(*counts.shape, self.scp, self.scp)
        others = (self.heads - counts)[:, :, None]
        own, (qkv, out) = counts[:, :, None], self.tensors
        column_qkv, column_out = qkv.sum(axis=0), out.sum(axis=0)
        held = own * (column_qkv + column_out) if self.hcp > 1 else 0.0
        return {
            "comm": self.options.passes * (self._exchange(counts) + self._fetch(kv)),
            "comp": onehot @ self.comp,
            "hcp_sent": others * qkv + own * (column_out - out),
            "hcp_received": own * (column_qkv - qkv) + others * out,
            "scp_sent": kv.sum(axis=2),
            "scp_received": kv.sum(axis=3),
            "memory": self.heads * (qkv + out) + held + kv.sum(axis=3),
        }

    def _exchange(self, counts: Array) -> Array:
        """Seconds [M, P, G] of both all-to-alls in columns, each v3's max(H_i^r (N-1)/N, (H - H_i^r)/N) S D a tensor,
        for shards of any size. On the way back the two directions change places, and the max is the same."""
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
        """Seconds [M, P, G] of gathering ``kv`` [M, P, G, G]: v3's (2 H D S / N) max(sum_j a_i^j, sum_j a_j^i)."""
        times = []
        for link, mask in zip(self.links, self.fetches, strict=True):
            there = kv * mask
            times.append(link.time(np.maximum(there.sum(axis=2), there.sum(axis=3))))
        return np.maximum(*times)
