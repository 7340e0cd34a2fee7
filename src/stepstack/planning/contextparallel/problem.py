"""What is planned: machines, the blocks of a sample, the sparsity of each layer's heads. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from stepstack.config import Strict
from stepstack.planning.timing import Attention, Link


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster(Strict):
    """Ranks that share a sample, and what was measured on them."""

    ranks: PositiveInt
    """Ranks that share a sample."""
    ranks_per_node: PositiveInt
    """Ranks in one node."""
    memory: PositiveFloat
    """Bytes that a rank has for the tensors of one layer's attention."""
    intra: Link
    """Times of transfers between ranks of a node."""
    inter: Link
    """Times of transfers between nodes."""
    compute: Attention
    """Times of a head's attention, all passes of ``PlanOptions`` together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions(Strict):
    """How a plan is searched."""

    passes: PositiveInt = 2
    """Number of times that bytes move: 2, forward and its adjoint, in training."""
    exact: NonNegativeInt = 20_000
    """Assignments of heads up to which all are tried; where there are more, a local search is made."""
    restarts: NonNegativeInt = 16
    """Starts of the local search that are drawn, beside two greedy ones."""
    seed: NonNegativeInt = 0
    """Seed of the starts that are drawn."""
    shapes: tuple[tuple[PositiveInt, PositiveInt], ...] | None = None
    """Shapes (hcp, scp) of the grid of ranks that are tried; null: all that the ranks allow."""


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


Inner = Literal["hcp", "scp"]  # whose groups are neighbouring ranks, and so share a node if they fit


Array = NDArray[np.float64]
